"""PreviewService: what a change would do, before it is made.

Everything is worked out on copies of the mesh, on a thread, one question at a time; questions wait in line, and are
refused where the line is long.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias

import grpc.aio

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.errors import Busy, NotFound
from meshwarden.controlplane.gather.graph.seen import MAX_ROWS, SeenCalls
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.foresight.effect import Budget, Effects
from meshwarden.controlplane.policy.foresight.overruled import MAX_RULES, overruled
from meshwarden.controlplane.policy.foresight.replay import Replay, Seen, name_of
from meshwarden.controlplane.policy.foresight.replay_limit import LimitReplay, Minute, counted, policies_of
from meshwarden.controlplane.policy.foresight.suggest import PREFIX_FROM, Use, suggest
from meshwarden.controlplane.policy.foresight.verdict import Judge
from meshwarden.controlplane.policy.mesh import Change, Impact, Key, Mesh
from meshwarden.controlplane.policy.stage import changes_of, has_changes, is_live, without_nodes
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.reach import Node, reach
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources.model import normalise, ref_of, unwrap
from meshwarden.controlplane.rollout.plan import title
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import preview_service_pb2 as v1
from meshwarden.v1 import preview_service_pb2_grpc
from meshwarden.v1.preview_service_pb2 import ReplayedCalls
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: Final = "/meshwarden.v1.PreviewService/"
REPLAY_SPAN: Final = timedelta(hours=1)
SUGGEST_SPAN: Final = timedelta(days=1)
# Different sources, destinations and methods that are held against policies.
MAX_SEEN: Final = 200_000
CHUNK: Final = 5000
MAX_SERVICES: Final = 50
MAX_WAITING: Final = 8


class Checker(Protocol):
    """Who checks a change as if it were made."""

    async def check(
        self, resources: Sequence[Resource], deletions: Sequence[ResourceRef], caller: SpiffeId | None
    ) -> int:
        """Says against which revision a batch, and what is deleted once it is stored, was held, and changes nothing.

        Raises:
            InvalidRequest: the batch would be refused.
            NotFound, StillUsed: a deletion would be.
            Denied: the caller may not do it.
        """


class PreviewServicer(preview_service_pb2_grpc.PreviewServiceServicer):
    """Answers operators; an operator of a tenant is shown what concerns its tenant alone."""

    def __init__(
        self,
        checker: Checker,
        publisher: Publisher,
        sessions: Sessions,
        seen: SeenCalls,
        clock: Callable[[], datetime],
    ) -> None:
        self._checker, self._publisher, self._sessions = checker, publisher, sessions
        self._seen, self._clock = seen, clock
        self._turn, self._waiting = asyncio.Lock(), 0

    async def Preview(self, request: v1.PreviewRequest, context: Context) -> v1.PreviewResponse:
        caller = _caller()
        changes = await self._changes(request, caller, "Preview")
        async with self._in_line():
            before, revision = self._publisher.mesh.fork(), self._publisher.revision
            about = self._nodes(), _shown(caller), self._clock().timestamp()
            answer = await asyncio.to_thread(_preview, before, changes, *about)
            answer.warnings.extend(self._warnings(request.resources, before))
        answer.revision = revision
        _hide(answer, caller)
        return answer

    async def Replay(self, request: v1.ReplayRequest, context: Context) -> AsyncIterator[v1.ReplayResponse]:
        caller = _caller()
        changes = await self._changes(request, caller, "Replay")
        end_s, start_s = await self._span(request.span.ToTimedelta() if request.HasField("span") else REPLAY_SPAN)
        async with self._in_line():
            before = self._publisher.mesh.fork()
            answer = v1.ReplayAnswer(revision=self._publisher.revision)
            answer.start.seconds, answer.end.seconds = start_s, end_s
            async for rows in self._replay(answer, before, changes, caller):
                yield v1.ReplayResponse(rows=rows)
        yield v1.ReplayResponse(rows=rows, answer=answer)

    async def SuggestAccess(self, request: v1.SuggestAccessRequest, context: Context) -> v1.SuggestAccessResponse:
        caller = _caller()
        owner = request.service.partition("/")[0] or _tenant(caller)
        authorize(caller, SERVICE + "SuggestAccess", owner or None)
        end_s, start_s = await self._span(request.span.ToTimedelta() if request.HasField("span") else SUGGEST_SPAN)
        answer = v1.SuggestAccessResponse(revision=self._publisher.revision)
        answer.start.seconds, answer.end.seconds = start_s, end_s
        async with self._in_line():
            mesh = self._publisher.mesh.fork()
            if request.service and mesh.callee(name_of(request.service)) is None:
                raise NotFound(f"there is no Service {request.service}")
            called = [request.service] if request.service else await self._called(mesh, start_s, end_s, owner)
            answer.omitted = max(0, len(called) - MAX_SERVICES)
            uses: dict[str, list[Use]] = {name: [] for name in called[:MAX_SERVICES]}
            for destination, *use in await self._seen.uses(start_s, end_s, uses):
                uses[destination].append(Use(*use))
            prefix_from = request.prefix_from or PREFIX_FROM
            for name, of_service in uses.items():
                found = await asyncio.to_thread(suggest, mesh, name_of(name), of_service, prefix_from)
                answer.services.append(found)
        return answer

    async def _changes(
        self, request: v1.PreviewRequest | v1.ReplayRequest, caller: SpiffeId | None, method: str
    ) -> list[Change]:
        """A change as the mesh takes it: checked against the store, of which the mesh then knows as much."""
        authorize(caller, SERVICE + method, _tenant(caller) or None)
        revision = await self._checker.check(request.resources, request.deletions, caller)
        await self._publisher.wait_revision(revision)
        changes = []
        for resource in map(normalise, request.resources):
            ref = ref_of(resource)
            if resource.HasField("rollout"):  # what becomes of the mesh once it is committed
                changes += changes_of(resource.rollout)
            else:
                changes.append(Change(Key(ref.kind, ref.tenant, ref.name), unwrap(resource)))
        return changes + [Change(Key(ref.kind, ref.tenant, ref.name), None) for ref in request.deletions]

    @contextlib.asynccontextmanager
    async def _in_line(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} previews wait already: ask again later")
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def _span(self, span: timedelta) -> tuple[int, int]:
        """Until when and from when, in seconds since 1970: from the first minute that the ledger has of that time."""
        end_s = int(self._clock().timestamp()) + 1
        start_s = end_s - int(span.total_seconds())
        return end_s, await self._seen.first_s(start_s - start_s % 60) or end_s - end_s % 60

    def _nodes(self) -> list[Node]:
        return [
            Node(
                state.node,
                tuple(state.data_planes),
                _serving(frozenset(state.tenants)),
                Place(self._sessions.region, state.zone),
            )
            for state in self._sessions.states()
            if state.connected
        ]

    def _warnings(self, resources: Iterable[Resource], mesh: Mesh) -> Iterator[str]:
        """What of rollouts is of no node that is there."""
        region, states = self._sessions.region, self._sessions.states()
        places = {state.node: Place(region, state.zone) for state in states}
        for rollout in (resource.rollout for resource in resources if resource.HasField("rollout")):
            for field, text in without_nodes(rollout, mesh, places):
                yield f"Rollout {rollout.metadata.tenant}/{rollout.metadata.name} {field}: {text}"

    async def _called(self, mesh: Mesh, start_s: int, end_s: int, tenant: str) -> list[str]:
        """The services that were called and are there."""
        found = await self._seen.called(start_s, end_s, tenant, MAX_ROWS)
        return [name for name in found if mesh.callee(name_of(name)) is not None]

    async def _replay(
        self, answer: v1.ReplayAnswer, before: Mesh, changes: list[Change], caller: SpiffeId | None
    ) -> AsyncIterator[int]:
        """Fills in an answer; yields how many rows were read so far."""
        tenant = _tenant(caller)
        after = before.fork()
        impact = after.apply(changes)
        now_s = self._clock().timestamp()
        judges = (Judge(before, now_s), Judge(after, now_s))
        # Of another tenant's policies a tenant's operator sees a part of the calls alone.
        policies = frozenset(one for one in policies_of(judges, impact) if tenant in ("", one.tenant))
        touched = frozenset(impact.services | impact.servers)
        replay = Replay(*judges, touched, counted(judges, policies), _shown(caller))
        rows, sums = 0, dict[tuple[str, str, str], tuple[int, int]]()
        start_s, end_s = answer.start.seconds, answer.end.seconds
        async for found in self._seen.sums(start_s, end_s, tenant):
            rows += len(found)
            answer.truncated = not _add(sums, found)
            yield rows
            if answer.truncated:
                break
        seen = (Seen(*key, *sides) for key, sides in sums.items())
        while some := list(islice(seen, CHUNK)):  # whoever asked may go meanwhile
            await asyncio.to_thread(replay.add, some)
            yield rows
        limits = LimitReplay(*judges, policies, replay.passed)
        if replay.passed:
            destinations = {row.destination for row, _ in replay.passed.values()}
            async for found in self._seen.minutes(start_s, end_s, tenant, destinations):
                rows += len(found)
                answer.truncated |= len(found) > MAX_ROWS
                await asyncio.to_thread(limits.add, (Minute(*row) for row in found))
                yield rows
        await asyncio.to_thread(_fill, answer, replay, limits)
        yield rows


def _preview(
    before: Mesh, changes: list[Change], nodes: list[Node], shown: Callable[[str], bool], at_s: float
) -> v1.PreviewResponse:
    after = before.fork()
    impact: Impact = after.apply(changes)
    effects = Effects(before, after, shown, at_s=at_s)
    answer = effects.of(impact)
    stored = (change.key for change in changes if change.message is not None)
    answer.overruled.extend(islice(overruled(effects.after, stored, effects.budget.spend), MAX_RULES))
    answer.reach.CopyFrom(reach(before, after, impact, nodes))
    for key in (change.key for change in changes if change.key.kind == "Rollout"):
        rollout = before.rollouts.get(key)
        if rollout is not None and is_live(rollout):
            having = [node for node in nodes if has_changes(rollout, node.name, node.place)]
            answer.ended.append(_ended(before, rollout, having, shown, effects.budget, at_s))
    return answer


def _ended(
    mesh: Mesh, rollout: Any, nodes: list[Node], shown: Callable[[str], bool], budget: Budget, at_s: float
) -> v1.EndedRollout:
    """What a rollout's nodes lose with it: the mesh as it is, held against the one that they have."""
    over = changes_of(rollout)
    key = Key("Rollout", rollout.metadata.tenant, rollout.metadata.name)
    after = mesh.fork()
    after.apply([Change(key, None)])  # of which `explain` has nothing to say then
    before = after.fork()
    impact = before.apply(over)
    found = Effects(before, after, shown, budget, at_s).of(impact)
    return v1.EndedRollout(
        rollout=f"Rollout {key.tenant}/{key.name}",
        stage=title(rollout),
        policies=[f"{change.key.kind} {change.key.tenant}/{change.key.name}" for change in over],
        changes=found.changes,
        omitted_changes=found.omitted_changes,
        omitted_services=found.omitted_services,
        reach=reach(before, after, impact, nodes),
    )


def _add(sums: dict[tuple[str, str, str], tuple[int, int]], found: Iterable[tuple[Any, ...]]) -> bool:
    """Adds rows of a step to those of others; whether there was room for all of them."""
    read = 0
    for source, destination, method, by_source, by_destination in found:
        read += 1
        key = (source, destination, method)
        if (known := sums.get(key)) is None:
            if len(sums) >= MAX_SEEN:
                return False
            known = (0, 0)
        sums[key] = (known[0] + by_source, known[1] + by_destination)
    return read <= MAX_ROWS


def _fill(answer: v1.ReplayAnswer, replay: Replay, limits: LimitReplay) -> None:
    """Puts what was found into the answer."""
    totals = replay.totals
    answer.calls = sum(totals.values())
    answer.unchanged = totals[ReplayedCalls.OUTCOME_UNSPECIFIED]
    answer.denied, answer.allowed = totals[ReplayedCalls.DENIED], totals[ReplayedCalls.ALLOWED]
    answer.rerouted, answer.undecidable = totals[ReplayedCalls.REROUTED], totals[ReplayedCalls.UNDECIDABLE]
    answer.changed.extend(replay.found())
    answer.omitted, answer.omitted_calls = replay.omitted["rows"], replay.omitted["calls"]
    for told in limits.found():
        if told.outcome == ReplayedCalls.LIMITED:
            answer.limited += told.calls
        answer.changed.append(told)


def _hide(answer: v1.PreviewResponse, caller: SpiffeId | None) -> None:
    """Leaves out how far a change is pushed beyond a tenant: how many nodes a mesh has is its operators' business."""
    if _tenant(caller):
        for told in (answer.reach, *(one.reach for one in answer.ended)):
            told.ClearField("connected_nodes")
            told.ClearField("connected_data_planes")


def _serving(tenants: frozenset[str]) -> Callable[[str], bool]:
    return lambda tenant: not tenants or tenant in tenants


def _caller() -> SpiffeId | None:
    verified = peer.current()
    return verified.spiffe_id if verified is not None else None


def _shown(caller: SpiffeId | None) -> Callable[[str], bool]:
    return lambda tenant: sees(caller, tenant)


def _tenant(caller: SpiffeId | None) -> str:
    return (caller.tenant if caller is not None else None) or ""
