"""`meshwarden doctor`: what is wrong, the gravest first, and the fix for each."""

import stat
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import grpc

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure, from_rpc
from meshwarden.controlplane.cli.fault import diagnose, traffic
from meshwarden.controlplane.cli.fault.finding import Cause, Finding, Severity, ordered, show
from meshwarden.controlplane.local import context, look
from meshwarden.controlplane.local.error import LocalError
from meshwarden.v1.admin_service_pb2 import GetStatusRequest

_TIMEOUT_S: Final = 6.0
_SERVER: Final = "server"


@click.command()
@render.output_option
def doctor(output: str) -> None:
    """Find what is wrong, the gravest first, and the fix. Exits 1 if there is anything."""
    name, current = context.get(click.get_current_context().find_root().obj)
    findings = ordered(_examine(current, utc_now()))
    show(findings, output)
    if findings:
        raise Failure(f"{len(findings)} {'problem' if len(findings) == 1 else 'problems'} in context {name}")
    click.echo(f"context {name}: all is well", err=True)


def _examine(current: context.Context, now: datetime) -> Iterator[Finding]:
    """All findings: those of this machine, and the control plane's, or why it tells none."""
    yield from _key(current)
    seen = list(look.agents(current))
    away = {agent.node: agent.fault for agent in seen if agent.fault}
    told: set[str] = set()
    try:
        with client.connect(current, now) as mesh:
            answer = mesh.admin.GetStatus(GetStatusRequest(), timeout=_TIMEOUT_S)
            told = {node.node for node in answer.nodes if not node.connected}
            yield from diagnose.of_mesh(answer, now, away)
            yield from traffic.of_calls(mesh, traffic.clock_of(answer), told)
    except grpc.RpcError as error:
        yield _unanswered(current, error, seen)
        yield from _on_this_machine(seen, now)
    except LocalError as error:
        cause = Cause.OPERATOR_EXPIRED if "certificate ended" in error.message else Cause.OPERATOR_REFUSED
        yield Finding(Severity.CRITICAL, "operator", cause, error.message, error.fix)
        yield from _on_this_machine(seen, now)
    for agent in seen:
        if agent.fault and agent.node not in told:
            cause = Cause.AGENT_SILENT if agent.is_silent else Cause.AGENT_UNREACHABLE
            fix = f"start the agent of that node again; its log: meshwarden logs --node {agent.node}"
            yield Finding(Severity.CRITICAL, f"node {agent.node}", cause, agent.fault, fix)


def _key(current: context.Context) -> Iterator[Finding]:
    key = Path(current.key_file)
    if key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        evidence = f"{key} is mode {stat.S_IMODE(key.stat().st_mode):04o}"
        yield Finding(Severity.WARNING, "operator", Cause.KEY_EXPOSED, evidence, f"chmod 600 {key}")


def _on_this_machine(seen: Sequence[look.AgentSeen], now: datetime) -> Iterator[Finding]:
    """What agents say themselves, where the control plane doesn't."""
    for agent in seen:
        if agent.status is not None:
            yield from diagnose.of_node(agent.as_node(), now)


def _unanswered(current: context.Context, error: Any, seen: Sequence[look.AgentSeen]) -> Finding:
    """Why the control plane told nothing."""
    subject, code = f"control plane {current.address}", error.code()
    if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        failure = from_rpc(error)
        fix = failure.fix or "see `meshwarden context show` for who you are to the mesh"
        return Finding(Severity.CRITICAL, subject, Cause.OPERATOR_REFUSED, failure.message, fix)
    here = [look.process(current, _SERVER)] if current.state_dir else []
    alone = [agent.node for agent in seen if agent.status is not None and not agent.status.connected]
    if alone:
        here.append(f"{len(alone)} agents go on without it, and keep telemetry on disk")
    if refusal := look.connects(current.address):
        said = look.last_error(current, _SERVER)
        evidence = [f"no connection: {refusal}", *here, f"its log ends with: {said}" if said else ""]
        fix = "start it: `meshwarden up` where this is a mesh of `up`; else see `meshwarden context list`"
        return Finding(Severity.CRITICAL, subject, Cause.CONTROL_PLANE_UNREACHABLE, _joined(evidence), fix)
    details = error.details() or ""
    if "CERTIFICATE_VERIFY_FAILED" in details or "SSL" in details:
        fix = "is this the right context? Its ca_file must be of the mesh that listens there"
        return Finding(Severity.CRITICAL, subject, Cause.CONTROL_PLANE_UNTRUSTED, details, fix)
    evidence = [f"it takes connections and does not answer: {details}", *here]
    fix = "see its log, and start it again: meshwarden logs server"
    return Finding(Severity.CRITICAL, subject, Cause.CONTROL_PLANE_SILENT, _joined(evidence), fix)


def _joined(evidence: Sequence[str]) -> str:
    return "; ".join(part for part in evidence if part)
