"""ListRoots and ChangeRoot of AdminService: operators of the mesh see the roots and move them on."""

from collections.abc import Callable, Iterator
from datetime import datetime

from meshwarden.certs.authority.slot import RootState, SlotState
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.identity.rotation import Act, RootRotation
from meshwarden.v1 import admin_service_pb2 as v1

SERVICE = "/meshwarden.v1.AdminService/"
NEXT = {
    Act.PREPARE: "the next is prepared",
    Act.ACTIVATE: "is activated, once no node is missing",
    Act.REVOKE: "is revoked",
}


class RootDesk:
    """Answers operators who ask for roots."""

    def __init__(self, rotation: RootRotation, clock: Callable[[], datetime]) -> None:
        self._rotation, self._clock = rotation, clock

    def listed(self, caller: SpiffeId | None) -> v1.ListRootsResponse:
        """Shows all roots."""
        authorize(caller, SERVICE + "ListRoots", None)
        return self._answer()

    async def change(self, caller: SpiffeId | None, request: v1.ChangeRootRequest) -> v1.ListRootsResponse:
        """Does what is asked for, and shows the roots as they are then."""
        authorize(caller, SERVICE + "ChangeRoot", None)
        rotation, by, kinds = self._rotation, str(caller), v1.ChangeRootRequest
        told: list[str] = []
        if request.change == kinds.PREPARE:
            await rotation.prepare(by, request.reason)
        elif request.change == kinds.ACTIVATE:
            await rotation.activate(request.fingerprint, by, request.reason, force=request.force)
        elif request.change == kinds.TAINT:
            told = await rotation.taint(request.fingerprint, by, request.reason)
        else:
            await rotation.revoke(request.fingerprint, by, request.reason, force=request.force)
        answer = self._answer()
        answer.told.extend(told)
        return answer

    def states(self) -> Iterator[v1.RootState]:
        """The roots as they were last seen, with what becomes of them."""
        return map(self._state, self._rotation.known)

    def _answer(self) -> v1.ListRootsResponse:
        answer = v1.ListRootsResponse(roots=self.states())
        answer.now.FromDatetime(self._clock())
        return answer

    def _state(self, root: RootState) -> v1.RootState:
        state = v1.RootState(
            fingerprint=root.fingerprint,
            region=root.region,
            state=v1.RootState.State.Value(root.state.value),
            used_by=self._rotation.users(root.fingerprint),
        )
        if not root.region and root.state in (SlotState.PREPARED, SlotState.ACTIVE):
            missing = self._rotation.missing(root.fingerprint)
            state.missing.extend(f"{node}: {why}" for node, why in missing.items())
        state.not_before.FromDatetime(root.not_before)
        state.not_after.FromDatetime(root.not_after)
        state.since.FromDatetime(root.since)
        step = self._rotation.next_of(root)
        if step is not None:
            state.next = NEXT[step.act]
            state.next_time.FromDatetime(step.time)
        return state
