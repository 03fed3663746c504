"""Deny, Allow and ListDenied of AdminService: who may revoke what, and who knows of it."""

from collections.abc import Callable, Sequence
from datetime import datetime

from meshwarden.certs.deny import Deny, InvalidDeny, last_end
from meshwarden.certs.issue import MAX_LEAF_TTL
from meshwarden.certs.spiffe_id import InvalidSpiffeId, Role, SpiffeId
from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.identity.deny import Denies, DenyRecord
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.v1 import admin_service_pb2 as v1

SERVICE = "/meshwarden.v1.AdminService/"


class DenyDesk:
    """Answers operators who revoke; a tenant's operator has its own tenant's identities alone."""

    def __init__(
        self,
        denies: Denies,
        deny_watch: DenyWatch,
        sessions: Sessions,
        trust_domain: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._denies, self._deny_watch, self._sessions = denies, deny_watch, sessions
        self._trust_domain, self._clock = trust_domain, clock

    async def deny(self, caller: SpiffeId | None, request: v1.DenyRequest) -> v1.DenyResponse:
        """Denies what is asked for, if the caller may; returns once the control plane itself refuses it."""
        targets = self._targets(caller, "Deny", request.targets)
        denies = [self._deny(target, request) for target in targets]
        revision = await self._denies.add(denies, request.reason, str(caller))
        await self._deny_watch.wait_revision(revision)
        keys = {(deny.spiffe_id, deny.serial) for deny in denies}
        records = [r for r in self._deny_watch.records() if (r.deny.spiffe_id, r.deny.serial) in keys]
        nodes = sum(state.connected for state in self._sessions.states())
        return v1.DenyResponse(denied=map(_state, records), revision=revision, nodes=nodes)

    async def allow(self, caller: SpiffeId | None, request: v1.AllowRequest) -> v1.AllowResponse:
        """Takes denies back, if the caller may."""
        targets = self._targets(caller, "Allow", request.targets)
        revision = await self._denies.allow(targets, request.reason, str(caller))
        await self._deny_watch.wait_revision(revision)
        return v1.AllowResponse(revision=revision)

    def listed(self, caller: SpiffeId | None, request: v1.ListDeniedRequest) -> v1.ListDeniedResponse:
        """Shows what the caller may see."""
        authorize(caller, SERVICE + "ListDenied", request.tenant or None)
        is_operator = caller is not None and caller.role is Role.OPERATOR

        def shown(record: DenyRecord) -> bool:
            tenant = SpiffeId.parse(record.deny.spiffe_id).tenant if record.deny.spiffe_id else None
            if tenant is None:
                return is_operator and not request.tenant
            return sees(caller, tenant) and request.tenant in ("", tenant)

        states = [state for state in self._sessions.states() if state.connected]
        revision = self._deny_watch.present.revision
        behind = [state.node for state in states if state.denied_revision < revision]
        return v1.ListDeniedResponse(
            denied=[_state(record) for record in self._deny_watch.records() if shown(record)],
            revision=revision,
            nodes=len(states),
            behind=behind if is_operator else (),
        )

    def _targets(self, caller: SpiffeId | None, method: str, targets: Sequence[v1.DenyTarget]) -> list[tuple[str, str]]:
        """Reads the targets and sees that the caller may change each of them.

        Raises:
            InvalidRequest: one of them is none.
            Denied: the caller may not.
        """
        found = []
        for number, target in enumerate(targets):
            try:
                deny = Deny.of(target.spiffe_id, target.serial, self._clock())
            except InvalidDeny as error:
                raise InvalidRequest([FieldFault(f"targets[{number}]", str(error))]) from None
            tenant = self._tenant(deny.spiffe_id, number)
            authorize(caller, SERVICE + method, tenant)
            found.append((deny.spiffe_id, deny.serial))
        return found

    def _tenant(self, spiffe_id: str, number: int) -> str | None:
        """Whose an identity is; None for the mesh's own, and for whatever bears a serial number."""
        if not spiffe_id:
            return None
        try:
            identity = SpiffeId.parse(spiffe_id)
        except InvalidSpiffeId as error:
            raise InvalidRequest([FieldFault(f"targets[{number}].spiffeId", str(error))]) from None
        # Another trust domain's tenants aren't ours, whatever their names are.
        return identity.tenant if identity.trust_domain == self._trust_domain else None

    def _deny(self, target: tuple[str, str], request: v1.DenyRequest) -> Deny:
        """The deny of a target, until what the request says, or until its last certificate has ended."""
        now = self._clock()
        # What nodes say of certificates is not asked: one that is in the wrong hands might say whatever helps it.
        end = now + request.ttl.ToTimedelta() if request.HasField("ttl") else last_end(MAX_LEAF_TTL, now)
        return Deny.of(*target, end)


def _state(record: DenyRecord) -> v1.DeniedState:
    deny = record.deny
    target = v1.DenyTarget(spiffe_id=deny.spiffe_id, serial=deny.serial)
    state = v1.DeniedState(target=target, reason=record.reason, by=record.by)
    state.time.FromDatetime(record.time)
    state.not_after.FromDatetime(deny.not_after)
    return state
