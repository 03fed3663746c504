"""Signs workloads' certificates for the nodes that run them. All that a certificate says comes from the entry."""

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.port import Authority, AuthorityError, AuthorityUnavailable
from meshwarden.certs.csr import InvalidCsr, parse_csr, spki
from meshwarden.certs.issue import IssueRefused, LeafTemplate, is_reserved_dns_name
from meshwarden.certs.jwt_svid import InvalidJwtSvid, check_audience
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.issued import Certificate, Issued
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.rate import Limited, Limits, Pace, Rate
from meshwarden.controlplane.identity.record import NodeRecord
from meshwarden.controlplane.resources.model import decode, key_of
from meshwarden.controlplane.store.port import Store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import WorkloadEntry

MAX_REQUESTS = 500
DEFAULT_TTL = timedelta(hours=1)
# An agent asks for a token of an entry and an audience every few minutes; programs choose audiences.
JWT_PACE = Pace(10.0, 100)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class _Refusal(Exception):
    """One request isn't signed."""

    def __init__(
        self, code: grpc.StatusCode, message: str, cause: Limited | AuthorityUnavailable | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        # What will be otherwise in a while.
        self.cause = cause

    def answer(self, waiting: Counter[str]) -> v1.SignedWorkload:
        """What a batch holds in the place of the certificate.

        Args:
            waiting: how many of the batch wait for each limit already, {who: count}: there is one after the other.
        """
        answer, cause = v1.SignedWorkload(code=self.code.value[0], message=self.message), self.cause
        if cause is not None:
            wait_s = cause.wait_s
            if isinstance(cause, Limited):
                wait_s += waiting[cause.who] / cause.pace.per_s
                waiting[cause.who] += 1
            answer.retry_after.FromNanoseconds(math.ceil(wait_s * 1e9))
        return answer


@dataclass(frozen=True)
class _Signed:
    chain: tuple[bytes, ...]
    certificate: Certificate
    # For the audit log.
    fields: dict[str, object]


class WorkloadSigner:
    """Signs what entries allow."""

    def __init__(
        self,
        authority: Authority,
        store: Store,
        audit: AuditLog,
        clock: Callable[[], datetime],
        *,
        trust_domain: str,
        denied: Callable[[SpiffeId], str],
        limits: Limits,
        jwt: JwtAuthority | None = None,
    ) -> None:
        self._authority, self._store, self._audit, self._clock = authority, store, audit, clock
        self._denied, self._jwt = denied, jwt
        self._trust_domain = trust_domain
        self._of_node, self._of_tenant = Rate(limits.signs_of_node), Rate(limits.signs_of_tenant)
        self._issued = Issued(store, clock)
        self._of_entry = Rate(JWT_PACE)

    async def sign(self, node: NodeRecord, requests: Sequence[v1.WorkloadCsr]) -> v1.SignWorkloadResponse:
        """Answers each request of a node by itself, in order.

        Raises:
            Denied: the node was removed meanwhile.
            StoreError: entries can't be read, or what was signed can't be recorded, and so isn't given.
            AuditUnavailable: what was signed can't be recorded, and so isn't given.
        """
        results: list[v1.SignedWorkload] = []
        issued: list[dict[str, object]] = []
        certificates: list[Certificate] = []
        waiting = Counter[str]()
        for number, request in enumerate(requests):
            try:
                if number >= MAX_REQUESTS:
                    raise _Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {MAX_REQUESTS} requests in one call")
                signed = await self._sign(node, request)
            except _Refusal as refusal:
                results.append(refusal.answer(waiting))
                who = {"tenant": request.tenant, "entry": request.entry}
                self._audit.note("workload.sign_denied", node=node.node, reason=refusal.message, **who)
            else:
                results.append(v1.SignedWorkload(chain=signed.chain))
                issued.append({"node": node.node, **signed.fields})
                certificates.append(signed.certificate)
            # A large batch lets others have the loop in between.
            await asyncio.sleep(0)
        await self._issued.add(node, certificates)
        await self._audit.record_all("workload.sign", issued)
        return v1.SignWorkloadResponse(results=results)

    async def sign_jwt(self, node: NodeRecord, request: v1.SignJwtRequest) -> v1.SignJwtResponse:
        """Signs a JWT-SVID for an entry of a node.

        Raises:
            Denied: no entry of that name names the node, or no token may have the audience.
            Limited: too many are asked for.
            StoreError: the entry can't be read.
            AuditUnavailable: what was signed can't be recorded, and so isn't given.
        """
        try:
            return await self._sign_jwt(node, request)
        except _Refusal as refusal:
            who = {"tenant": request.tenant, "entry": request.entry}
            self._audit.note("workload.jwt_denied", node=node.node, reason=refusal.message, **who)
            if isinstance(refusal.cause, Limited):
                raise refusal.cause from None
            raise Denied(refusal.message, refusal.code) from None

    async def _sign_jwt(self, node: NodeRecord, request: v1.SignJwtRequest) -> v1.SignJwtResponse:
        if self._jwt is None:
            raise _Refusal(grpc.StatusCode.UNIMPLEMENTED, "this control plane signs no JWT-SVIDs")
        now = self._clock()
        # By entry, so that no program of a node uses up what its other ones need.
        name = f"{request.tenant}/{request.entry}"
        _take(self._of_entry, f"{node.node}/{name}", f"entry {name}", now, "tokens")
        entry = await self._entry(node, request)
        spiffe_id = self._template(entry).spiffe_id
        try:
            svid = self._jwt.sign(spiffe_id, check_audience(request.audience), now, node.serial)
        except InvalidJwtSvid as error:
            raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        await self._audit.record(
            "workload.jwt",
            node=node.node,
            tenant=entry.metadata.tenant,
            entry=entry.metadata.name,
            entry_revision=entry.metadata.record.revision,
            spiffe_id=str(spiffe_id),
            audience=list(svid.audience),
            not_after=svid.expire_time.isoformat(),
        )
        answer = v1.SignJwtResponse(token=svid.token)
        answer.expire_time.FromDatetime(svid.expire_time)
        return answer

    async def _sign(self, node: NodeRecord, request: v1.WorkloadCsr) -> _Signed:
        now = self._clock()
        _take(self._of_node, node.node, f"node {node.node}", now)
        entry = await self._entry(node, request)
        # What a node asks for in vain is not the tenant's.
        _take(self._of_tenant, request.tenant, f"tenant {request.tenant}", now)
        template = self._template(entry)
        try:
            public_key = parse_csr(request.csr)
            chain = await self._authority.sign(template, public_key, now, request.csr)
        except InvalidCsr as error:
            raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        except IssueRefused as error:
            raise _Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        except AuthorityError as error:
            cause = error if isinstance(error, AuthorityUnavailable) else None
            raise _Refusal(grpc.StatusCode.UNAVAILABLE, str(error), cause) from None
        leaf = chain[0]
        fields: dict[str, object] = {
            "tenant": entry.metadata.tenant,
            "entry": entry.metadata.name,
            "entry_revision": entry.metadata.record.revision,
            "spiffe_id": str(template.spiffe_id),
            "key": hashlib.sha256(spki(public_key)).hexdigest(),
            "serial": f"{leaf.serial_number:x}",
            "not_after": leaf.not_valid_after_utc.isoformat(),
        }
        ders = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
        issued = Certificate(str(template.spiffe_id), f"{leaf.serial_number:x}", leaf.not_valid_after_utc)
        return _Signed(ders, issued, fields)

    async def _entry(self, node: NodeRecord, request: v1.WorkloadCsr | v1.SignJwtRequest) -> WorkloadEntry:
        # One answer for "there is none" and "it is another node's": a node learns nothing of what isn't its own.
        name = f"{request.tenant}/{request.entry}"
        refusal = _Refusal(
            grpc.StatusCode.PERMISSION_DENIED, f"no WorkloadEntry {name[:130]} names node {node.node} under spec.nodes"
        )
        if _LABEL.fullmatch(request.tenant) is None or _LABEL.fullmatch(request.entry) is None:
            raise refusal
        if not node.serves(request.tenant):
            raise _Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"node {node.node} has joined for {', '.join(node.tenants)} alone, not for tenant {request.tenant}",
            )
        ref = ResourceRef(kind="WorkloadEntry", tenant=request.tenant, name=request.entry)
        record, _ = await self._store.get(key_of(ref))
        if record is None:
            raise refusal
        entry = decode(record.value, record.revision).workload_entry
        # The record's own word for its name too: a certificate's tenant never hangs on how a key was put together.
        if node.node not in entry.spec.nodes or (entry.metadata.tenant, entry.metadata.name) != (ref.tenant, ref.name):
            raise refusal
        return entry

    def _template(self, entry: WorkloadEntry) -> LeafTemplate:
        name = f"WorkloadEntry {entry.metadata.tenant}/{entry.metadata.name}"
        reserved = [dns for dns in entry.spec.dns_names if is_reserved_dns_name(dns, self._trust_domain)]
        if reserved:
            message = f"{name}: spec.dns_names: {reserved[0]!r} is the control plane's"
            raise _Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
        ttl = entry.spec.svid_ttl.ToTimedelta() if entry.spec.HasField("svid_ttl") else DEFAULT_TTL
        try:
            spiffe_id = SpiffeId.workload(self._trust_domain, entry.metadata.tenant, entry.spec.service)
            if reason := self._denied(spiffe_id):
                raise _Refusal(grpc.StatusCode.PERMISSION_DENIED, f"{name}: {spiffe_id}: {reason}")
            # Certificates count in seconds.
            return LeafTemplate(spiffe_id, ttl - ttl % timedelta(seconds=1), tuple(entry.spec.dns_names))
        except (InvalidSpiffeId, IssueRefused) as error:
            raise _Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"{name}: {error}") from None


def _take(rate: Rate, caller: str, who: str, now: datetime, what: str = "certificates") -> None:
    wait_s = rate.take(caller, now)
    if wait_s:
        limited = Limited(who, what, rate.pace, wait_s)
        raise _Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(limited), limited)
