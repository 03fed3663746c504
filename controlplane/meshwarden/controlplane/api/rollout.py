"""RolloutService: how rollouts do, and what operators say to them."""

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypeAlias

import grpc.aio

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.change import ChangeDesk
from meshwarden.controlplane.api.errors import InvalidRequest, NotFound, WrongPhase
from meshwarden.controlplane.history.record import Changed
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Key, Mesh
from meshwarden.controlplane.policy.stage import has_changes, is_over
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import title, wrap
from meshwarden.controlplane.rollout.driver import Driver
from meshwarden.controlplane.rollout.status import ended, paused, resumed
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import rollout_service_pb2 as v1
from meshwarden.v1 import rollout_service_pb2_grpc
from meshwarden.v1.resources_pb2 import Rollout, RolloutStatus

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: Final = "/meshwarden.v1.RolloutService/"
MAX_LISTED: Final = 500
_WORDS: Final = {
    v1.ChangeRolloutRequest.PAUSE: "paused",
    v1.ChangeRolloutRequest.RESUME: "resumed",
    v1.ChangeRolloutRequest.ABORT: "aborted",
}


class RolloutServicer(rollout_service_pb2_grpc.RolloutServiceServicer):
    """Answers operators; an operator of a tenant sees and touches that tenant's alone."""

    def __init__(
        self, mesh: Mesh, driver: Driver, desk: ChangeDesk, sessions: Sessions, clock: Callable[[], datetime]
    ) -> None:
        self._mesh, self._driver, self._desk, self._sessions, self._clock = mesh, driver, desk, sessions, clock

    async def ListRollouts(self, request: v1.ListRolloutsRequest, context: Context) -> v1.ListRolloutsResponse:
        caller = _caller()
        authorize(caller, SERVICE + "ListRollouts", request.tenant or None)
        found = islice(self._shown(caller, request), MAX_LISTED)
        return v1.ListRolloutsResponse(rollouts=[self._state(key, rollout) for key, rollout in found])

    async def ChangeRollout(self, request: v1.ChangeRolloutRequest, context: Context) -> v1.ChangeRolloutResponse:
        caller, ref = _caller(), request.ref
        authorize(caller, SERVICE + "ChangeRollout", ref.tenant)
        if ref.kind != "Rollout":
            raise InvalidRequest([FieldFault("ref.kind", "must be Rollout")])

        async def change(guard: int) -> v1.ChangeRolloutResponse:
            before = self._desk.view.find("Rollout", ref.tenant, ref.name)
            if not isinstance(before, Rollout):
                raise NotFound(f"there is no {title(ref)}")
            after = self._changed(before, request, caller)
            why = f"rollout {ref.tenant}/{ref.name}: {after.status.reason}"[:512]
            changes = [Changed(ref, wrap(before), wrap(after))]
            event = f"rollout.{_WORDS[request.action]}"
            revision = await self._desk.commit(event, changes, guard, caller, why)
            return v1.ChangeRolloutResponse(revision=revision, rollout=after)

        return await self._desk.guarded(change)

    def _changed(self, before: Rollout, request: v1.ChangeRolloutRequest, caller: SpiffeId | None) -> Rollout:
        """A rollout after what an operator says to it.

        Raises:
            WrongPhase: it is not in a phase for that.
        """
        after, now, phase = Rollout(), self._clock(), before.status.phase
        after.CopyFrom(before)
        if request.action == v1.ChangeRolloutRequest.PAUSE and phase == RolloutStatus.RUNNING:
            paused(after, now)
        elif request.action == v1.ChangeRolloutRequest.RESUME and phase == RolloutStatus.PAUSED:
            resumed(after, now)
        elif request.action == v1.ChangeRolloutRequest.ABORT and not is_over(before):
            ended(after, RolloutStatus.ABORTED, now)
        else:
            name = f"{before.metadata.tenant}/{before.metadata.name}"
            is_at = RolloutStatus.Phase.Name(phase).lower().replace("_", " ")
            raise WrongPhase(f"Rollout {name} is {is_at}: it can't be {_WORDS[request.action]}")
        said = f": {request.reason}" if request.reason else ""
        after.status.reason = f"{_WORDS[request.action]} by {caller}{said}"
        return after

    def _shown(self, caller: SpiffeId | None, request: v1.ListRolloutsRequest) -> Iterator[tuple[Key, Rollout]]:
        for key, rollout in sorted(self._mesh.rollouts.items()):
            is_asked = request.tenant in ("", key.tenant) and request.name in ("", key.name)
            if is_asked and sees(caller, key.tenant) and not (request.running and is_over(rollout)):
                yield key, rollout

    def _state(self, key: Key, rollout: Rollout) -> v1.RolloutState:
        parent = rollout.status.trace_parent.split("-")
        state = v1.RolloutState(rollout=rollout, trace_id=parent[1] if len(parent) == 4 else "")
        if is_over(rollout):
            return state
        state.now.CopyFrom(self._driver.verdict(key, rollout))
        since = rollout.status.stage_revision or rollout.metadata.record.revision
        for node in self._sessions.everywhere():
            place = Place(self._sessions.region, node.zone)
            state.nodes_taken += node.acked_revision >= since and has_changes(rollout, node.node, place)
        return state


def _caller() -> SpiffeId | None:
    verified = peer.current()
    return verified.spiffe_id if verified is not None else None
