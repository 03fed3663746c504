"""ListJwtKeys and ChangeJwtKey of AdminService: operators of the mesh see the keys of JWT-SVIDs and move them on."""

from collections.abc import Callable
from datetime import datetime

from meshwarden.certs.authority.slot import SlotState
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity import jwt_key
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.v1 import admin_service_pb2 as v1

SERVICE = "/meshwarden.v1.AdminService/"
NEXT = {"prepare": "the next is prepared", "activate": "is activated", "revoke": "is revoked"}


class JwtKeyDesk:
    """Answers operators who ask for the keys of JWT-SVIDs."""

    def __init__(self, authority: JwtAuthority, clock: Callable[[], datetime]) -> None:
        self._authority, self._clock = authority, clock

    def listed(self, caller: SpiffeId | None) -> v1.ListJwtKeysResponse:
        """Shows all keys."""
        authorize(caller, SERVICE + "ListJwtKeys", None)
        return self._answer()

    async def change(self, caller: SpiffeId | None, request: v1.ChangeJwtKeyRequest) -> v1.ListJwtKeysResponse:
        """Does what is asked for, and shows the keys as they are then."""
        authorize(caller, SERVICE + "ChangeJwtKey", None)
        authority, by, kinds = self._authority, str(caller), v1.ChangeRootRequest
        if request.change == kinds.PREPARE:
            await authority.prepare(by, request.reason)
        elif request.change == kinds.ACTIVATE:
            await authority.activate(request.kid, by, request.reason, force=request.force)
        elif request.change == kinds.TAINT:
            await authority.taint(request.kid, by, request.reason)
        else:
            await authority.revoke(request.kid, by, request.reason)
        return self._answer()

    def _answer(self) -> v1.ListJwtKeysResponse:
        answer = v1.ListJwtKeysResponse(keys=map(self._state, self._authority.records()))
        answer.now.FromDatetime(self._clock())
        return answer

    def _state(self, record: jwt_key.JwtKeyRecord) -> v1.JwtKeyState:
        active, waiting = self._authority.slots()
        signs = record.state in jwt_key.SIGNING
        state = v1.JwtKeyState(
            kid=record.kid,
            state=v1.RootState.State.Value(record.state.value),
            elsewhere=signs and record not in (active, waiting),
        )
        state.since.FromDatetime(record.since)
        act, time = jwt_key.next_of(record, waiting=waiting, active=active)
        if act and not state.elsewhere:
            state.next = NEXT[act]
            state.next_time.FromDatetime(time)
        if record.state is SlotState.PREPARED:
            state.missing.extend(f"{node}: {why}" for node, why in self._authority.missing(record.kid).items())
        return state
