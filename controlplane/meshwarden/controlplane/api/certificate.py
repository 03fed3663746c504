"""ListCertificates of AdminService: which certificates workloads were given, and which of them are held."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.issued import Certificate, Issued
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.v1 import admin_service_pb2 as v1
from meshwarden.v1.node_service_pb2 import WorkloadState

METHOD: Final = "/meshwarden.v1.AdminService/ListCertificates"
PAGE: Final = 500
MAX_HOLDERS: Final = 16
MAX_READ: Final = 20_000
"""After so many batches an answer ends with the node that it is at, whatever it has found."""
_END_OF_NODE: Final = "9" * 12


class CertificateDesk:
    """Answers operators; an operator of a tenant is shown that tenant's certificates alone."""

    def __init__(
        self, issued: Issued, deny_watch: DenyWatch, sessions: Sessions, clock: Callable[[], datetime]
    ) -> None:
        self._issued, self._deny_watch, self._sessions, self._clock = issued, deny_watch, sessions, clock

    async def listed(self, caller: SpiffeId | None, request: v1.ListCertificatesRequest) -> v1.ListCertificatesResponse:
        """Returns a page of what the caller may see.

        Raises:
            Denied: it may not ask for that tenant.
            InvalidRequest: the page token is of another node.
        """
        authorize(caller, METHOD, request.tenant or None)
        if request.node and request.page_token and request.page_token.partition("/")[0] != request.node:
            raise InvalidRequest([FieldFault("pageToken", f"must be what a page of node {request.node} has said")])

        def shown(one: Certificate) -> bool:
            tenant = _tenant(one.spiffe_id)
            return (
                one.not_after >= now
                and request.spiffe_id in ("", one.spiffe_id)
                and request.tenant in ("", tenant)
                and sees(caller, tenant)
            )

        now, denied = self._clock(), self._denied()
        holders = {state.node: _holders(state) for state in self._sessions.states() if _is_heard_of(state)}
        answer = v1.ListCertificatesResponse()
        answer.now.FromDatetime(now)
        # The token of a page names what the caller has seen, or a node: never when another tenant's certificates end.
        place = node = ""
        read = 0
        async for batch in self._issued.batches(request.node, request.page_token):
            if place and batch.place != place and len(answer.certificates) >= (request.page_size or PAGE):
                answer.next_page_token = place
                break
            if read >= MAX_READ and batch.node != node:
                answer.next_page_token = f"{node}/{_END_OF_NODE}"
                break
            node, read = batch.node, read + 1
            found = [one for one in batch.certificates if shown(one)]
            place = batch.place if found else place
            answer.certificates.extend(_state(one, node, holders.get(node), denied) for one in found)
        return answer

    def _denied(self) -> Callable[[Certificate], bool]:
        """Says of certificates whether they are denied at present, by whatever means them."""
        targets = {(record.deny.spiffe_id, record.deny.serial) for record in self._deny_watch.records()}
        return lambda one: not targets.isdisjoint(((one.spiffe_id, ""), (one.spiffe_id, one.serial), ("", one.serial)))


def _is_heard_of(node: v1.NodeState) -> bool:
    return node.HasField("last_seen") and not node.control_plane


def _holders(node: v1.NodeState) -> dict[str, list[WorkloadState]]:
    holders: dict[str, list[WorkloadState]] = {}
    for workload in node.workloads:
        holders.setdefault(workload.serial, []).append(workload)
    return holders


def _state(
    one: Certificate,
    node: str,
    holders: dict[str, list[WorkloadState]] | None,
    denied: Callable[[Certificate], bool],
) -> v1.CertificateState:
    """One certificate; `holders` is {serial: who holds it} of its node, or None where nothing is heard of that."""
    state = v1.CertificateState(spiffe_id=one.spiffe_id, serial=one.serial, node=node, denied=denied(one))
    state.not_after.FromDatetime(one.not_after)
    held_by = holders.get(one.serial) if holders is not None else None
    if held_by:
        state.use = v1.CertificateState.HELD
        state.workloads.extend(workload.id for workload in held_by[:MAX_HOLDERS])
        state.not_before.CopyFrom(held_by[0].not_before)
    else:
        state.use = v1.CertificateState.UNKNOWN if holders is None else v1.CertificateState.NOT_HELD
    return state


def _tenant(spiffe_id: str) -> str:
    """Whose an identity is; empty for no tenant's."""
    try:
        return SpiffeId.parse(spiffe_id).tenant or ""
    except InvalidSpiffeId:
        return ""
