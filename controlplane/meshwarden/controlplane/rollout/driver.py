"""Drives rollouts: one process at a time, by a lease of the store, whose token each of its writes carries.

All that it knows of a rollout stands in the store: its status in the resource, what was counted beside it. So whoever
takes the lease next goes on where the last one has stopped; what was decided is decided, and nothing is decided twice,
since each step is a commit that holds the status against the one that it was decided by.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, Protocol, TypeVar

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.audit.port import AuditUnavailable
from meshwarden.controlplane.history.record import Changed
from meshwarden.controlplane.policy.mesh import Key, Mesh
from meshwarden.controlplane.policy.stage import bound_of, concerned, has_changes, is_over
from meshwarden.controlplane.resources.model import ref_of, wrap
from meshwarden.controlplane.resources.reference import reference_faults
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.rollout import judge
from meshwarden.controlplane.rollout.count import Counts, Nodes, comparison, name_of, pair_of
from meshwarden.controlplane.rollout.plan import Step, next_step
from meshwarden.controlplane.rollout.status import EVENTS, committed, impossible, said, stepped
from meshwarden.controlplane.store import port
from meshwarden.v1.resources_pb2 import Rollout, RolloutVerdict

LEASE: Final = "rollout-driver"
LEASE_TTL_S: Final = 9.0
EVERY_S: Final = 0.5
_RETRY_S: Final = 1.0

Answer = TypeVar("Answer")
log = structlog.get_logger()


class Desk(Protocol):
    """Who changes resources."""

    @property
    def view(self) -> View:
        """The resources, within `guarded`."""

    async def guarded(self, change: Callable[[int], Awaitable[Answer]]) -> Answer:
        """Runs a change on resources that are up to date."""

    async def commit(
        self,
        event: str,
        changes: Sequence[Changed],
        guard: int,
        caller: SpiffeId | None,
        reason: str,
        fence: port.Lease | None = None,
    ) -> int:
        """Commits a change with its history; returns its revision."""


class Driver:
    """Begins, judges, promotes, commits and rolls back."""

    def __init__(
        self,
        store: port.Store,
        mesh: Mesh,
        counts: Counts,
        nodes: Nodes,
        desk: Desk,
        who: SpiffeId,
        owner: str,
        clock: Callable[[], datetime],
        tracing: trace.TracerProvider,
    ) -> None:
        """Does nothing until `run`.

        Args:
            store: whose lease says who drives.
            mesh: the resources; `touch` says when they have changed.
            counts: the calls.
            nodes: the nodes that have joined.
            desk: makes the changes.
            who: makes them, for the history.
            owner: this process's name, the same when it starts again.
            clock: the present, aware.
            tracing: where spans go.
        """
        self._store, self._mesh, self._counts, self._nodes, self._desk = store, mesh, counts, nodes, desk
        self._who, self._owner, self._clock = who, owner, clock
        self._tracer = tracing.get_tracer("meshwarden.controlplane")
        self._wanted = asyncio.Event()

    def touch(self) -> None:
        """Takes note of changed resources."""
        if any(not is_over(rollout) for rollout in self._mesh.rollouts.values()):
            self._wanted.set()

    async def run(self) -> None:
        """Drives, whenever there is something to drive and it holds the lease, until it is cancelled."""
        while True:
            self.touch()
            await self._wanted.wait()
            try:
                lease = await self._store.acquire(LEASE, self._owner, LEASE_TTL_S)
                await self._drive_while(lease)
            except port.LeaseHeld as held:
                log.debug("rollout.standby", reason=str(held))
            except port.StoreError as error:
                log.warning("rollout.no_lease", reason=str(error))
            await asyncio.sleep(_RETRY_S)

    async def _drive_while(self, lease: port.Lease) -> None:
        """Drives until nothing is left to drive; then gives the lease up."""
        loop = asyncio.get_running_loop()
        renew_s = loop.time() + LEASE_TTL_S / 3
        while True:
            self._wanted.clear()
            running = {key: rollout for key, rollout in self._mesh.rollouts.items() if not is_over(rollout)}
            if not running:
                await self._store.renew(lease, release=True)
                return
            for key, rollout in sorted(running.items()):
                await self._drive(key, rollout, lease)
            if loop.time() >= renew_s:
                lease = await self._store.renew(lease)
                renew_s = loop.time() + LEASE_TTL_S / 3
            await asyncio.sleep(EVERY_S)

    async def _drive(self, key: Key, rollout: Rollout, lease: port.Lease) -> None:
        verdict = self.verdict(key, rollout)
        step = next_step(rollout, verdict.outcome, self._clock())
        if step is None:
            return
        try:
            await self._take(step, rollout, verdict, lease)
        except (port.Fenced, port.LeaseLost):
            raise
        except (port.StoreError, AuditUnavailable) as error:  # one that can't be driven must not stop the others
            log.warning("rollout.stuck", rollout=f"{key.tenant}/{key.name}", step=step.value, reason=str(error))

    def verdict(self, key: Key, rollout: Rollout) -> RolloutVerdict:
        """What the present stage comes to so far."""
        status, spec = rollout.status, rollout.spec
        answer = RolloutVerdict(stage=status.stage, outcome=RolloutVerdict.TOO_FEW)
        answer.nodes, answer.nodes_concerned = self._share(rollout)
        lines, pairs = self._counts.sums(key)
        least, found = judge.least_calls(spec.judge), []
        for line, pair in zip(lines, pairs, strict=True):
            told = comparison(line, pair)
            reference = pair.unchanged
            if reference.calls < least:  # so few are left, or call: what was seen of them before helps
                for before in status.verdicts:
                    for one in before.comparisons:
                        reference += pair_of(one).unchanged if name_of(one) == name_of(told) else judge.Sample()
            told.allowed = judge.allowed(line.budget, spec.judge)
            seen = judge.compare(pair.changed, reference, told.allowed, least, len(lines))
            told.outcome, told.changed_at_least, told.unchanged_at_most = seen.outcome, seen.at_least, seen.at_most
            answer.comparisons.append(told)
            found.append(seen.outcome)
        answer.outcome = judge.worst(found)
        return answer

    def _share(self, rollout: Rollout) -> tuple[int, int]:
        """How many nodes have the changes, of how many that they concern."""
        nodes = self._nodes()
        about = concerned(rollout, self._mesh) & nodes.keys()
        return sum(has_changes(rollout, node, nodes[node]) for node in about), len(about)

    async def _take(self, step: Step, seen: Rollout, verdict: RolloutVerdict, lease: port.Lease) -> None:
        """Takes a step, unless somebody has changed the rollout since it was decided."""
        above = TraceContextTextMapPropagator().extract({"traceparent": seen.status.trace_parent}, Context())
        name, now = f"{seen.metadata.tenant}/{seen.metadata.name}", self._clock()
        verdict.time.FromDatetime(now)
        if step is not Step.BEGIN:
            self._trace_judgement(seen, verdict, above)

        async def commit(guard: int) -> int:
            before = self._desk.view.find("Rollout", seen.metadata.tenant, seen.metadata.name)
            if before is None or before.metadata.record.revision != seen.metadata.record.revision:
                return 0
            after = stepped(step, seen, verdict, self._bound(step, seen), now)
            changes = committed(seen, self._desk.view) if step is Step.COMMIT else []
            batch = [wrap(after), *(one.after for one in changes if one.after is not None)]
            if faults := reference_faults(batch, self._desk.view):
                after, changes = impossible(seen, verdict, faults[0], now), []
            changes.insert(0, Changed(ref_of(seen), wrap(before), wrap(after)))
            reason = f"rollout {name}: {after.status.reason}"[:512]
            return await self._desk.commit(f"rollout.{EVENTS[step]}", changes, guard, self._who, reason, lease)

        span = self._tracer.start_span(f"rollout {EVENTS[step]}", above)
        with trace.use_span(span, end_on_exit=True):
            span.set_attribute("mesh.rollout", name)
            revision = await self._desk.guarded(commit)
        if revision:
            log.info("rollout.step", rollout=name, step=step.value, stage=seen.status.stage, revision=revision)
            await self._seen(seen, revision)

    async def _seen(self, rollout: Rollout, revision: int) -> None:
        """Waits a while for the mesh to have what was committed, so that nothing is tried twice."""
        key = Key("Rollout", rollout.metadata.tenant, rollout.metadata.name)
        for _ in range(100):
            now = self._mesh.rollouts.get(key)
            if now is None or now.metadata.record.revision >= revision:
                return
            await asyncio.sleep(0.01)

    def _bound(self, step: Step, rollout: Rollout) -> int:
        stage = {Step.BEGIN: 0, Step.PROMOTE: rollout.status.stage + 1}.get(step)
        if stage is None:
            return rollout.status.hash_below
        return bound_of(rollout, stage, concerned(rollout, self._mesh) & self._nodes().keys())

    def _trace_judgement(self, rollout: Rollout, verdict: RolloutVerdict, above: Context) -> None:
        span = self._tracer.start_span("rollout judge", above, start_time=rollout.status.stage_time.ToNanoseconds())
        span.set_attribute("mesh.rollout", f"{rollout.metadata.tenant}/{rollout.metadata.name}")
        span.set_attribute("mesh.rollout.stage", verdict.stage + 1)
        span.set_attribute("mesh.rollout.outcome", RolloutVerdict.Outcome.Name(verdict.outcome))
        span.set_attribute("mesh.rollout.calls", [said(one) for one in verdict.comparisons][:16])
        span.end(verdict.time.ToNanoseconds())
