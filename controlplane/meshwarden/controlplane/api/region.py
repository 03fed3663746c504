"""RegionService: tells control planes of other regions what this one has counted and keeps, and what it issues by."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import SlotState, fingerprint_of
from meshwarden.certs.csr import spki
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.tail.tail import TailSampler
from meshwarden.controlplane.identity.authorize import authorize_region
from meshwarden.controlplane.identity.deny_elsewhere import told
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.rotation import RootRotation
from meshwarden.sdk.mtls import peer
from meshwarden.v1.admin_service_pb2 import RootState
from meshwarden.v1.node_service_pb2 import JwtKey
from meshwarden.v1.region_service_pb2 import (
    GetDeniesRequest,
    GetDeniesResponse,
    GetTrustRequest,
    GetTrustResponse,
    KeptTraces,
    PullRequest,
    PullResponse,
)
from meshwarden.v1.region_service_pb2_grpc import RegionServiceServicer

PULL: Final = "/meshwarden.v1.RegionService/Pull"
GET_TRUST: Final = "/meshwarden.v1.RegionService/GetTrust"
GET_DENIES: Final = "/meshwarden.v1.RegionService/GetDenies"
# A row is 6 KiB at the most, a message 4 MiB.
PAGE_ROWS: Final = 500
# One that is being served and one that comes in its place.
_PULLS: Final = 2


class RegionServicer(RegionServiceServicer):
    """Reads the ledger to the control plane of another region of the same trust domain."""

    def __init__(
        self,
        ledger: Ledger,
        tail: TailSampler,
        authority: Authority,
        rotation: RootRotation,
        deny_watch: DenyWatch,
        jwt: JwtAuthority,
        own: tuple[str, str],
    ) -> None:
        """Puts it together.

        Args:
            ledger: what this region has counted.
            tail: which traces it keeps.
            authority: has the certificates of its roots.
            rotation: knows how they stand, and who trusts them.
            deny_watch: knows what is denied.
            jwt: has the keys of its JWT-SVIDs.
            own: our trust domain and region.
        """
        self._ledger, self._tail, self._authority, self._rotation = ledger, tail, authority, rotation
        self._deny_watch, self._jwt, (self._trust_domain, self._region) = deny_watch, jwt, own
        self._pulling: Counter[str] = Counter()

    async def Pull(
        self, request: PullRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[PullResponse]:
        region = self._authorize(PULL)
        if self._pulling[region] >= _PULLS:
            text = f"region {region} pulls {_PULLS} times already: wait for one to end"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._pulling[region] += 1
        try:
            if request.HasField("kept") and self._tail.is_on:
                told = self._tail.word.told(request.kept.epoch, request.kept.after)
                if told[:2] != (request.kept.epoch, request.kept.after):
                    kept = KeptTraces(epoch=told.epoch, sequence=told.sequence, trace_ids=b"".join(told.trace_ids))
                    yield PullResponse(kept=kept)
            known = request.incarnation == self._ledger.incarnation and request.after <= self._ledger.sequence
            after, until = request.after if known else 0, self._ledger.sequence
            # Even a page of no rows tells of the incarnation; what changes meanwhile is for the next pull.
            while True:
                page = await self._ledger.changed(after, PAGE_ROWS)
                after = page.sequence
                if page.rows or not known:
                    yield PullResponse(incarnation=self._ledger.incarnation, sequence=after, rows=page.rows)
                known = True
                if len(page.rows) < PAGE_ROWS or after >= until:
                    return
        finally:
            self._pulling[region] -= 1

    async def GetTrust(
        self, request: GetTrustRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> GetTrustResponse:
        self._authorize(GET_TRUST)
        known = self._rotation.known
        certificates = {fingerprint_of(root): root for root in (await self._authority.bundle()).roots}
        answer = GetTrustResponse(
            trusted=[root.fingerprint for root in known if not self._rotation.missing_here(root.fingerprint)],
            jwt_trusted=[kid for kid in self._jwt.bundle().keys if not self._rotation.missing_jwt(kid)],
            jwt_keys=[
                JwtKey(kid=key.kid, public_key=spki(key.public_key), tainted=key.state is SlotState.TAINTED)
                for key in self._jwt.records()
            ],
        )
        for root in slot.own(known):
            if root.fingerprint in certificates:  # else it has just been revoked
                der = certificates[root.fingerprint].public_bytes(Encoding.DER)
                told = answer.roots.add(certificate=der, state=RootState.State.Value(root.state.value))
                told.since.FromDatetime(root.since)
        return answer

    async def GetDenies(
        self, request: GetDeniesRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> GetDeniesResponse:
        self._authorize(GET_DENIES)
        return told(self._deny_watch, request.etag)

    def _authorize(self, method: str) -> str:
        """Returns which region calls.

        Raises:
            Denied: it is no control plane of another.
        """
        verified = peer.current()
        caller = verified.spiffe_id if verified is not None else None
        return authorize_region(caller, method, self._trust_domain, self._region)
