"""What the control plane's word says to be wrong. Pure: it asks nobody."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from meshwarden.controlplane.cli import render
from meshwarden.controlplane.cli.fault.finding import Cause, Finding, Severity, listed
from meshwarden.v1.admin_service_pb2 import (
    BackendState,
    BundleState,
    ControlPlaneHealth,
    GetStatusResponse,
    NodeState,
    RegionState,
)
from meshwarden.v1.node_service_pb2 import AgentHealth, Nack, SpoolState, WorkloadState

MAX_SKEW: Final = timedelta(seconds=30)
# Clocks that are off by the same show that it is the one that they are compared with.
_ALIKE: Final = timedelta(seconds=5)
_LITTLE_BYTES: Final = 8 << 20
# A change of theirs is published days ahead; less than this is a moment's outage.
_STALE: Final = timedelta(minutes=15)
_ROOT_LEFT: Final = timedelta(days=30)
_FULL: Final = ("No space left", "less than", "disk is full", "Disk quota", "FullError")
_NEARLY: Final = 0.9
# Of a spool that is full a MiB and more goes at a time, and its size is told in whole ones.
_STEP_MIB: Final = 2


def of_mesh(answer: GetStatusResponse, now: datetime, away: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with a mesh.

    Args:
        answer: the control plane's word.
        now: this machine's clock.
        away: what was seen here of agents that do not answer here: {node: what}.
    """
    there = answer.now.ToDatetime(UTC)
    yield from _clocks(answer, now - there)
    if answer.HasField("health"):
        yield from _control_plane(answer.health, there)
    for node in answer.nodes:
        if node.control_plane:
            continue  # another control plane knows how it does
        if not node.connected:
            yield _away(node, away.get(node.node, ""))
            continue
        yield from of_node(node, there, is_reported=bool(answer.health.report_error))
        if node.acked_revision < answer.revision:
            yield from _behind(node, answer.revision)
            yield from _unfit(node)
    for region in answer.regions:
        if not region.answers:
            yield _region(region)
    yield from map(_foreign, filter(_is_stale, answer.foreign))
    for name in answer.ambiguous_names:
        exact = " or ".join(".".join(reversed(service.split("/"))) for service in name.services)
        yield Finding(
            Severity.WARNING,
            f"tenant {name.tenant}",
            Cause.AMBIGUOUS,
            f"{name.name} could mean {listed(list(name.services))}, and so does not resolve",
            f"dial {exact}, or export one of them no more",
        )


def of_node(node: NodeState, now: datetime, *, is_reported: bool = False) -> Iterator[Finding]:
    """What is wrong on a node whose agent answers, be it to the control plane or to us here.

    Args:
        node: the agent's word.
        now: the clock by which certificates end.
        is_reported: whether it is known already why telemetry does not go up.
    """
    subject, health = f"node {node.node}", node.health
    if health.disk_error:
        cause = Cause.DISK_FULL if any(word in health.disk_error for word in _FULL) else Cause.DISK_REFUSES
        yield Finding(
            Severity.CRITICAL,
            subject,
            cause,
            health.disk_error,
            "make room there: certificates, configuration and telemetry can't be kept until then",
        )
    yield from _node_certificate(subject, health, now)
    for nack in node.nacks:
        yield _nack(nack)
    for workload in node.workloads:
        yield from _workload(workload, now)
    if not is_reported:
        for spool in health.spools:
            yield _spool(subject, spool)


def _is_stale(state: BundleState) -> bool:
    return state.overdue.ToTimedelta() > _STALE or bool(state.fault and not state.roots and not state.jwt_keys)


def _foreign(state: BundleState) -> Finding:
    known = "the last one stands" if state.roots or state.jwt_keys else "nobody of it is trusted"
    return Finding(
        Severity.WARNING,
        f"trust domain {state.trust_domain}",
        Cause.BUNDLE_STALE,
        f"{state.fault}; {known}",
        "see that its endpoint answers as the TrustDomain says, and that what it shows proves it there: "
        "`meshwarden bundle show`",
    )


def _clocks(answer: GetStatusResponse, ours: timedelta) -> Iterator[Finding]:
    skews = {node.node: node.clock_skew.ToTimedelta() for node in answer.nodes if node.connected}
    bad = {name: skew for name, skew in skews.items() if abs(skew) > MAX_SKEW}
    if abs(ours) > MAX_SKEW:
        bad |= {"": ours}
    fix = "set the clock, by NTP for one: certificates are refused where clocks differ by more than a minute"
    everyone = [*skews.values(), ours]
    if len(bad) == len(everyone) > 1 and max(everyone) - min(everyone) < _ALIKE:
        evidence = f"all {len(everyone)} other clocks are {_seconds(ours)} off it"
        yield Finding(Severity.CRITICAL, "control plane", Cause.CLOCK_SKEWED, evidence, fix)
        return
    for name, skew in bad.items():
        subject = f"node {name}" if name else "this machine"
        evidence = f"its clock is {_seconds(skew)} off the control plane's"
        yield Finding(Severity.CRITICAL if name else Severity.WARNING, subject, Cause.CLOCK_SKEWED, evidence, fix)


def _control_plane(health: ControlPlaneHealth, now: datetime) -> Iterator[Finding]:
    subject = "control plane"
    errors = [error for error in (health.audit_error, health.report_error) if error]
    if health.disk_free_bytes < _LITTLE_BYTES or any(word in error for error in errors for word in _FULL):
        left = f"{health.disk_free_bytes >> 10} KiB are left in {health.state_dir}"
        yield Finding(
            Severity.CRITICAL,
            subject,
            Cause.DISK_FULL,
            "; ".join([left, *errors]),
            "make room on that disk: until then nothing is applied, signed or counted, and nodes go on with what "
            "they have",
        )
    else:
        fix = f"see the disk of {health.state_dir}, and `meshwarden logs server`"
        if health.audit_error:
            yield Finding(Severity.CRITICAL, subject, Cause.NOT_AUDITED, health.audit_error, fix)
        if health.report_error:
            yield Finding(Severity.WARNING, subject, Cause.NOT_WRITTEN, health.report_error, fix)
    if health.authority_error:
        yield Finding(
            Severity.CRITICAL,
            subject,
            Cause.AUTHORITY_AWAY,
            health.authority_error,
            "what is signed lasts until it ends, and what an issuing key still signs, too: see that Vault is there, "
            "unsealed, and takes our token",
        )
    if health.secrets_error:
        yield Finding(
            Severity.WARNING,
            subject,
            Cause.SECRETS_UNREAD,
            health.secrets_error,
            "workloads keep the last value that was read, but for one that is deleted: see that Vault is there, that "
            "the secret is, and that our policy allows it (deploy/vault/secrets.hcl)",
        )
    if health.settings_error:
        yield Finding(
            Severity.WARNING,
            subject,
            Cause.SETTINGS_OLD,
            health.settings_error,
            "what waits is taken once Vault is there; for another value start the control plane again, and see before "
            "that what it opens was put under that, too",
        )
    if health.HasField("not_after"):
        yield from _end(subject, health.not_after.ToDatetime(UTC) - now, "see `meshwarden logs server`")
    if health.HasField("root_not_after") and (left_s := health.root_not_after.ToDatetime(UTC) - now) < _ROOT_LEFT:
        evidence = f"a root of the trust domain ends in {render.life(left_s.total_seconds())}"
        yield Finding(Severity.WARNING, "trust domain", Cause.EXPIRING, evidence, "replace the root: docs/identity.md")
    for backend in health.backends:
        if backend.error:
            yield _backend(backend)


def _region(region: RegionState) -> Finding:
    age = f"{render.life(region.age.ToTimedelta().total_seconds())} old" if region.HasField("age") else "unknown"
    return Finding(
        Severity.WARNING,
        f"region {region.region}",
        Cause.REGION_SILENT,
        f"{region.address} does not answer: {region.error or 'no reason told'}; what it has counted is {age}",
        "see that its control plane runs and can be reached from here; each region goes on alone, and what is missing "
        "comes then",
    )


def _backend(backend: BackendState) -> Finding:
    waits = f"{backend.waiting} things ({backend.waiting_bytes >> 10} KiB) wait for it"
    return Finding(
        Severity.WARNING,
        f"backend {backend.name}",
        Cause.BACKEND_AWAY,
        f"{backend.error}; {waits}",
        "see that it runs, and that its endpoint in the configuration is right; what waits is sent then",
    )


def _away(node: NodeState, seen: str) -> Finding:
    since = f"{node.last_seen.ToDatetime(UTC):%H:%M:%S}Z; its {len(node.workloads)} workloads go on with what they have"
    if not node.HasField("last_seen"):
        since = f"the control plane started; it joined at {node.join_time.ToJsonString()}"
    evidence = f"no session since {since}"
    return Finding(
        Severity.CRITICAL,
        f"node {node.node}",
        Cause.AGENT_UNREACHABLE,
        f"{evidence}; {seen}" if seen else evidence,
        f"start the agent again, or mend the way to it; its log: meshwarden logs --node {node.node}",
    )


def _behind(node: NodeState, revision: int) -> Iterator[Finding]:
    """A node is behind for a moment after each change: only who has long not answered is a finding."""
    for name in node.health.waiting:
        yield Finding(
            Severity.CRITICAL,
            name,
            Cause.BEHIND,
            f"it has not answered to revision {revision}; node {node.node} stays at {node.acked_revision}",
            f"see whether its process is stopped or busy: meshwarden logs --workload {name.rpartition('/')[0]}",
        )


def _unfit(node: NodeState) -> Iterator[Finding]:
    for refused in node.health.refused:
        selectors = ", ".join(refused.selectors) or "its selectors"
        yield Finding(
            Severity.WARNING,
            f"{refused.tenant}/{refused.entry}",
            Cause.UNFIT,
            f"a program on node {node.node} was refused this identity, {refused.count} times of late: of the selectors "
            f"it does not fit {selectors}",
            "see there, by `meshwarden-agent status`, what it is; start the right program, or correct the selectors",
        )


def _node_certificate(subject: str, health: AgentHealth, now: datetime) -> Iterator[Finding]:
    if health.renewal_error:
        yield Finding(
            Severity.WARNING,
            subject,
            Cause.NOT_RENEWED,
            f"its certificate could not be renewed: {health.renewal_error}",
            "see that a WorkloadEntry names it and that it was not banned; else have it join again",
        )
    if health.HasField("not_after"):
        yield from _end(subject, health.not_after.ToDatetime(UTC) - now, "put a new join token, and start it again")


def _end(subject: str, left: timedelta, fix: str) -> Iterator[Finding]:
    if left <= timedelta(0):
        evidence = f"its certificate ended {render.life(-left.total_seconds())} ago"
        yield Finding(Severity.CRITICAL, subject, Cause.EXPIRED, evidence, fix)


def _workload(workload: WorkloadState, now: datetime) -> Iterator[Finding]:
    subject = f"workload {workload.id}"
    log = f"meshwarden logs --workload {workload.id}"
    if workload.serial and workload.not_after.ToDatetime(UTC) > now:
        if workload.error:
            is_certificate = "certificate" in workload.error or "could not be asked" in workload.error
            cause = Cause.NOT_RENEWED if is_certificate else Cause.FAULTY
            yield Finding(Severity.WARNING, subject, cause, workload.error, f"mend what it names; see {log}")
    elif workload.error:
        # No certificate that holds, and the reason.
        yield Finding(
            Severity.CRITICAL,
            subject,
            Cause.EXPIRED,
            f"it has no certificate that holds: {workload.error}",
            f"mend what it names: the next try comes within a minute; see {log}",
        )
    elif workload.serial:
        yield from _end(subject, workload.not_after.ToDatetime(UTC) - now, f"see {log}")


def _nack(nack: Nack) -> Finding:
    kind = nack.type_url.rpartition(".")[2]
    what = f"the {kind} {nack.resource}" if nack.resource else f"a {kind}"
    return Finding(
        Severity.CRITICAL,
        nack.data_plane,
        Cause.NACKED,
        f"it refused {what} and keeps what it had: {' '.join(nack.message.split())}",
        "undo what was applied last, or free what it names",
    )


def _spool(subject: str, spool: SpoolState) -> Finding:
    whose = f"of tenant {spool.tenant}" if spool.tenant else "of its own"
    evidence = f"{spool.size_mib} of {spool.limit_mib} MiB {whose} wait to go up"
    if spool.size_mib >= min(_NEARLY * spool.limit_mib, spool.limit_mib - _STEP_MIB):
        return Finding(
            Severity.WARNING,
            subject,
            Cause.SPOOL_FULL,
            f"{evidence}: the oldest is dropped, and counted",
            "see why the control plane does not take it: meshwarden logs server",
        )
    return Finding(Severity.NOTICE, subject, Cause.SPOOLING, evidence, "it goes up by itself; see that it shrinks")


def _seconds(skew: timedelta) -> str:
    return f"{skew.total_seconds():+.0f} s"
