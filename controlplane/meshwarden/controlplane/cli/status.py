"""`meshwarden status`."""

from typing import cast

import click
import grpc

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change import progress, rollout
from meshwarden.controlplane.cli.identity import bundle, ca
from meshwarden.v1.admin_service_pb2 import (
    DryRun,
    GetStatusRequest,
    GetStatusResponse,
    NodeState,
    PolicyGap,
    RegionState,
)
from meshwarden.v1.node_service_pb2 import WorkloadState
from meshwarden.v1.revision_service_pb2 import GetProgressRequest


@click.command()
@click.option("--tenant", default="", help="Only this tenant's workloads and calls.")
@click.option("--revision", type=click.IntRange(1, 2**63 - 1), help="Show how far this revision has come, instead.")
@render.output_option
def status(tenant: str, revision: int | None, output: str) -> None:
    """Show nodes, workloads, tenants, regions and warnings; or which share of the mesh has a revision."""
    with client.connect_current() as mesh:
        if revision is not None:
            request = GetProgressRequest(revision=revision, tenant=tenant)
            progress.say(mesh.revision.GetProgress(request, timeout=client.TIMEOUT_S), output)
            return
        answer = mesh.admin.GetStatus(GetStatusRequest(tenant=tenant), timeout=client.TIMEOUT_S)
        come = _progress(mesh, tenant) if output == "table" else ""
        rollouts = rollout.running_rows(mesh, tenant) if output == "table" else []
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    click.echo(f"{answer.trust_domain}\tregion {answer.region}\trevision {answer.revision}\tCA {answer.authority}")
    if come:
        click.echo(come)
    render.table(("NODE", "STATE", "REVISION", "REFUSED", "WORKLOADS"), [_node(node, answer) for node in answer.nodes])
    render.table(("WORKLOAD", "NODE", "SPIFFE ID", "LEFT"), workload_rows(answer))
    rates = [
        (tenant.tenant, f"{tenant.allowed_per_s:.1f}", f"{tenant.limited_per_s:.1f}", f"{tenant.denied_per_s:.1f}")
        for tenant in answer.tenants
    ]
    render.table(("TENANT", "ALLOWED/S", "LIMITED/S", "DENIED/S"), rates)
    if rollouts:
        render.table(("ROLLOUT", "IS", "STAGE", "SHARE"), rollouts)
    if answer.roots:
        render.table(("ROOT", "STATE", "LEFT"), ca.rows(answer.roots, answer.now.seconds, whole=False))
    if answer.dry_runs:
        told = [
            (one.policy, one.field, _would(one), one.source, one.destination, one.method, one.count)
            for one in answer.dry_runs
        ]
        render.table(("IN DRY RUN", "RULE", "WOULD", "CALLER", "CALLED", "METHOD", "CALLS"), told)
    if answer.permissive:
        render.table(("IN THE CLEAR", "UNTIL", "NODE", "FROM", "CALLS", "LAST"), _in_the_clear(answer))
    if answer.foreign:
        foreign = [(one.trust_domain, bundle.word(one), one.roots) for one in answer.foreign]
        render.table(("TRUST DOMAIN", "BUNDLE", "ROOTS"), foreign)
    if len(answer.regions) > 1:
        render.table(("REGION", "STATE", "AGE", "ADDRESS"), [_region(region) for region in answer.regions])
    if answer.health.HasField("tail_sampling"):
        sampling = answer.health.tail_sampling
        decided = ", ".join(f"{count} {why}" for why, count in sorted(sampling.decided.items()))
        row = (f"{sampling.ratio:g}", sampling.waiting, sampling.passed, sampling.dropped, decided)
        render.table(("TAIL SAMPLING", "SPANS WAIT", "PASSED", "DROPPED", "TRACES DECIDED ON"), [row])
    if answer.gaps:
        effect = PolicyGap.Effect.Name
        gaps = [(gap.policy, gap.field, gap.client, effect(gap.effect).lower(), gap.why) for gap in answer.gaps]
        render.table(("POLICY", "FIELD", "CLIENT", "IS", "WHY"), gaps)
    health = answer.health
    faults = (
        health.authority_error,
        health.audit_error,
        health.report_error,
        health.secrets_error,
        health.settings_error,
    )
    for warning in (*filter(None, faults), *answer.warnings):
        click.echo(f"warning: {render.plain(warning)}", err=True)


def _progress(mesh: client.Client, tenant: str) -> str:
    """How far the newest revision has come; empty if the control plane can't say, being older."""
    try:
        return progress.summary(mesh.revision.GetProgress(GetProgressRequest(tenant=tenant), timeout=client.TIMEOUT_S))
    except grpc.RpcError as error:
        if cast("grpc.Call", error).code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        return ""


def _node(node: NodeState, answer: GetStatusResponse) -> tuple[object, ...]:
    revision: object
    behind = answer.revision - node.acked_revision
    revision = f"{node.acked_revision} of {answer.revision}" if behind > 0 else node.acked_revision
    if not node.HasField("last_seen"):
        revision = "unknown"
    link = "connected" if node.connected else f"at {node.control_plane}" if node.control_plane else "away"
    return node.node, link, revision, len(node.nacks), len(node.workloads)


def _in_the_clear(answer: GetStatusResponse) -> list[tuple[object, ...]]:
    """One row an address that calls in the clear; of a service that nobody calls so, one without."""
    rows: list[tuple[object, ...]] = []
    for state in answer.permissive:
        until = render.moment(state.until)
        rows += [
            (state.service, until, one.node, one.address, one.count, render.moment(one.last)) for one in state.callers
        ]
        if not state.callers:
            rows.append((state.service, until, "-", "nobody", 0, "-"))
    return rows


def _would(one: DryRun) -> str:
    return "deny" if one.would_deny else "allow"


def _region(state: RegionState) -> tuple[object, ...]:
    word = "this one" if state.own else "answers" if state.answers else "away"
    return state.region, word, render.age(state), state.address


def workload_rows(answer: GetStatusResponse) -> list[tuple[str, str, str, str]]:
    """One row a workload: its id, node, SPIFFE ID and the remaining life of its certificate."""
    return [
        (workload.id, node.node, workload.spiffe_id, _life(workload, answer))
        for node in answer.nodes
        for workload in node.workloads
    ]


def _life(workload: WorkloadState, answer: GetStatusResponse) -> str:
    if not workload.HasField("not_after"):
        return "none yet"
    return render.life(workload.not_after.seconds - answer.now.seconds)
