"""`meshwarden doctor`: what is wrong, and the fix for each."""

import socket
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import click
import grpc

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure, from_rpc
from meshwarden.controlplane.local import context
from meshwarden.controlplane.local.error import LocalError
from meshwarden.v1.admin_service_pb2 import GetStatusRequest, GetStatusResponse, NodeState

MAX_SKEW_S = 30
# What is wrong, and the fix.
Problem = tuple[str, str]


@click.command()
@render.output_option
def doctor(output: str) -> None:
    """Find what is wrong, and the fix. Exits 1 if there is anything."""
    name, current = context.get(click.get_current_context().find_root().obj)
    problems = list(local_problems(current))
    try:
        with client.connect(current, utc_now()) as mesh:
            answer = mesh.admin.GetStatus(GetStatusRequest(), timeout=client.TIMEOUT_S)
        problems.extend(mesh_problems(answer, utc_now()))
    except grpc.RpcError as error:
        failure = from_rpc(error)
        problems.append((failure.message, failure.fix))
    except LocalError as failure:
        problems.append((failure.message, failure.fix))
    if output == "table":
        render.table(("PROBLEM", "FIX"), problems)
    else:
        render.data([{"problem": problem, "fix": fix} for problem, fix in problems], output)
    if problems:
        raise Failure(f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} in context {name}")
    click.echo(f"context {name}: all is well", err=True)


def local_problems(current: context.Context) -> Iterator[Problem]:
    """What is wrong with the context's key and sockets; connecting says what is wrong with its certificate."""
    key = Path(current.key_file)
    if key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield f"{key} is readable by others", f"chmod 600 {key}"
    for path in current.agent_sockets:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError as error:
                yield f"agent socket {path}: {error.strerror or error}", "start the agent of that node again"


def mesh_problems(answer: GetStatusResponse, now: datetime) -> Iterator[Problem]:
    """What the control plane knows to be wrong."""
    skew_s = now.timestamp() - answer.now.seconds
    if abs(skew_s) > MAX_SKEW_S:
        yield f"this clock is {skew_s:+.0f} s off the control plane's", "set the clock, by NTP for one"
    for node in answer.nodes:
        if not node.connected:
            fix = f"see the agent's log: meshwarden logs agent-{node.node}"
            yield f"node {node.node} is away {_since(node)}", fix
        elif node.acked_revision < answer.revision:
            behind = f"node {node.node} runs revision {node.acked_revision} of {answer.revision}"
            yield behind, "wait a moment; if it stays, see that agent's log"
        if abs(node.clock_skew.ToTimedelta().total_seconds()) > MAX_SKEW_S:
            yield f"the clock of node {node.node} is {node.clock_skew.ToJsonString()} off", "set that node's clock"
        for nack in node.nacks:
            yield f"{nack.data_plane} refused {nack.type_url}: {nack.message}", "the policy applied last is the cause"
    for region in answer.regions:
        if not region.answers:
            old = f"{region.age.ToTimedelta().total_seconds():.0f} s old" if region.HasField("age") else "unknown"
            away = f"region {region.region} does not answer at {region.address}; what it has counted is {old}"
            yield away, f"see that its control plane runs and can be reached from here: {region.error}"
    for tenant in answer.tenants:
        if tenant.denied_per_s > 0:
            fix = "ask why: meshwarden explain --from CALLER --to CALLEE --method METHOD"
            yield f"tenant {tenant.tenant}: {tenant.denied_per_s:.1f} calls a second are denied", fix


def _since(node: NodeState) -> str:
    if node.HasField("last_seen"):
        return f"since {node.last_seen.ToJsonString()}"
    return f"since the control plane started; it joined at {node.join_time.ToJsonString()}"
