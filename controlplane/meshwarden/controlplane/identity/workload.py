"""Signs workloads' certificates for the nodes that run them. All that a certificate says comes from the entry."""

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.port import Authority, AuthorityError, AuthorityUnavailable
from meshwarden.certs.csr import InvalidCsr, parse_csr, spki
from meshwarden.certs.issue import IssueRefused, LeafTemplate, is_reserved_dns_name
from meshwarden.certs.jwt_svid import InvalidJwtSvid, check_audience
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.issued import MAX_GUARDS, Certificate, Issued
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.known import Known
from meshwarden.controlplane.identity.rate import Limited, Limits, Pace, Rate
from meshwarden.controlplane.identity.record import NodeRecord
from meshwarden.controlplane.resources.model import decode, prefix_of
from meshwarden.controlplane.store.port import Ambiguous, Conflict, Store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.resources_pb2 import WorkloadEntry

MAX_REQUESTS = 500
ATTEMPTS = 3
WITHOUT_PAUSE = 8
"""So many are signed before others have their turn: some 3 ms."""
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
    # The entry for which it was signed: its store key, and as of which revision.
    key: str
    revision: int

    def answer(self, _: Counter[str]) -> v1.SignedWorkload:
        return v1.SignedWorkload(chain=self.chain)


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
        known: Known,
        reserved: Collection[str] = (),
    ) -> None:
        self._authority, self._store, self._audit, self._clock = authority, store, audit, clock
        self._denied, self._jwt, self._known = denied, jwt, known
        self._trust_domain, self._reserved = trust_domain, frozenset(reserved)
        self._of_node, self._of_tenant = Rate(limits.signs_of_node), Rate(limits.signs_of_tenant)
        self._issued = Issued(store, clock)
        self._of_entry = Rate(JWT_PACE)
        # Of the last chain: them, and what they are in DER.
        self._intermediates: tuple[tuple[x509.Certificate, ...], tuple[bytes, ...]] = ((), ())

    async def sign(
        self, node: NodeRecord, requests: Sequence[v1.WorkloadCsr], reread: Callable[[], Awaitable[NodeRecord]]
    ) -> v1.SignWorkloadResponse:
        """Answers each request of a node by itself, in order.

        Args:
            node: its record; it may be of a moment ago.
            requests: at most 500 are signed.
            reread: reads the node's record again.

        Raises:
            Denied: the node was removed meanwhile.
            StoreError: entries can't be read, or what was signed can't be recorded, and so isn't given.
            AuditUnavailable: what was signed can't be recorded, and so isn't given.
        """
        answers: list[_Signed | _Refusal] = []
        for start in range(0, min(len(requests), MAX_REQUESTS), MAX_GUARDS):
            some = requests[start : min(start + MAX_GUARDS, MAX_REQUESTS)]
            answers += await self._sign_some(node, some, reread)
        too_many = _Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"at most {MAX_REQUESTS} requests in one call")
        answers += [too_many] * (len(requests) - len(answers))
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, _Refusal):
                who = {"tenant": request.tenant, "entry": request.entry}
                self._audit.note("workload.sign_denied", node=node.node, reason=answer.message, **who)
        issued = [{"node": node.node, **answer.fields} for answer in answers if isinstance(answer, _Signed)]
        await self._audit.record_all("workload.sign", issued)
        waiting = Counter[str]()
        return v1.SignWorkloadResponse(results=[answer.answer(waiting) for answer in answers])

    async def _sign_some(
        self, node: NodeRecord, requests: Sequence[v1.WorkloadCsr], reread: Callable[[], Awaitable[NodeRecord]]
    ) -> list["_Signed | _Refusal"]:
        """Signs, and records what was signed in one commit, in which what it was signed for still stands."""
        answers = await self._answers(node, requests)
        for _ in range(ATTEMPTS):
            signed = [answer for answer in answers if isinstance(answer, _Signed)]
            guards: dict[str, int] = {}
            for one in signed:
                guards[one.key] = min(one.revision, guards.get(one.key, one.revision))
            try:
                await self._issued.add(node, [one.certificate for one in signed], guards)
                return answers
            except (Conflict, Ambiguous) as error:
                # The node has its own certificate renewed just now, an entry was changed: all is looked at again.
                failure = error
            node = await reread()
            answers = await self._answers(node, requests, answers)
        raise failure

    async def _answers(
        self, node: NodeRecord, requests: Sequence[v1.WorkloadCsr], before: Sequence["_Signed | _Refusal"] = ()
    ) -> list["_Signed | _Refusal"]:
        """Signs what is asked for; `before` says what was answered at the last attempt, of which refusals stand."""
        answers: list[_Signed | _Refusal] = []
        now = self._clock()
        for number, request in enumerate(requests):
            answer = before[number] if before else None
            if not isinstance(answer, _Refusal):
                try:
                    answer = await self._sign(node, request, now, is_first=answer is None)
                except _Refusal as refusal:
                    answer = refusal
            answers.append(answer)
            # A large batch lets others have the loop in between.
            if number % WITHOUT_PAUSE == WITHOUT_PAUSE - 1:
                await asyncio.sleep(0)
        return answers

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

    async def _sign(self, node: NodeRecord, request: v1.WorkloadCsr, now: datetime, is_first: bool) -> _Signed:
        if is_first:
            _take(self._of_node, node.node, f"node {node.node}", now)
        entry = await self._entry(node, request, may_lag=is_first)
        if is_first:
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
        issued = Certificate(str(template.spiffe_id), f"{leaf.serial_number:x}", leaf.not_valid_after_utc)
        fields: dict[str, object] = {
            "tenant": request.tenant,
            "entry": request.entry,
            "entry_revision": entry.metadata.record.revision,
            "spiffe_id": issued.spiffe_id,
            "key": hashlib.sha256(spki(public_key)).hexdigest(),
            "serial": issued.serial,
            "not_after": issued.not_after.isoformat(),
        }
        ders = (leaf.public_bytes(Encoding.DER), *self._above(chain[1:]))
        return _Signed(ders, issued, fields, _key_of(request), entry.metadata.record.revision)

    def _above(self, intermediates: tuple[x509.Certificate, ...]) -> tuple[bytes, ...]:
        """What stands above a leaf, in DER: the same until another key signs."""
        if self._intermediates[0] != intermediates:
            ders = tuple(certificate.public_bytes(Encoding.DER) for certificate in intermediates)
            self._intermediates = intermediates, ders
        return self._intermediates[1]

    async def _entry(
        self, node: NodeRecord, request: v1.WorkloadCsr | v1.SignJwtRequest, may_lag: bool = False
    ) -> WorkloadEntry:
        if _LABEL.fullmatch(request.tenant) is None or _LABEL.fullmatch(request.entry) is None:
            raise _not_its_own(node, request)
        if not node.serves(request.tenant):
            raise _Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"node {node.node} has joined for {', '.join(node.tenants)} alone, not for tenant {request.tenant}",
            )
        known = self._known.entry(request.tenant, request.entry) if may_lag else None
        if known is not None and _is_for(known, node, request):
            return known
        record, _ = await self._store.get(_key_of(request))
        entry = decode(record.value, record.revision).workload_entry if record is not None else None
        if entry is None or not _is_for(entry, node, request):
            raise _not_its_own(node, request)
        return entry

    def _template(self, entry: WorkloadEntry) -> LeafTemplate:
        name = f"WorkloadEntry {entry.metadata.tenant}/{entry.metadata.name}"
        reserved = [
            dns
            for dns in entry.spec.dns_names
            if is_reserved_dns_name(dns, self._trust_domain) or dns.lower().rstrip(".") in self._reserved
        ]
        if reserved:
            message = f"{name}: spec.dns_names: {reserved[0]!r} is the control plane's"
            raise _Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
        ttl = entry.spec.svid_ttl.ToTimedelta() if entry.spec.HasField("svid_ttl") else DEFAULT_TTL
        try:
            template = _leaf_template(
                self._trust_domain, entry.metadata.tenant, entry.spec.service, ttl, tuple(entry.spec.dns_names)
            )
        except (InvalidSpiffeId, IssueRefused) as error:
            raise _Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"{name}: {error}") from None
        if reason := self._denied(template.spiffe_id):
            raise _Refusal(grpc.StatusCode.PERMISSION_DENIED, f"{name}: {template.spiffe_id}: {reason}")
        return template


@lru_cache(maxsize=4096)  # an entry is asked for again at each renewal, on each of its nodes
def _leaf_template(
    trust_domain: str, tenant: str, service: str, ttl: timedelta, dns_names: tuple[str, ...]
) -> LeafTemplate:
    # Certificates count in seconds.
    return LeafTemplate(SpiffeId.workload(trust_domain, tenant, service), ttl - ttl % timedelta(seconds=1), dns_names)


def _key_of(request: v1.WorkloadCsr | v1.SignJwtRequest) -> str:
    """The store key of the entry that is asked for."""
    return prefix_of("WorkloadEntry", request.tenant) + request.entry


def _not_its_own(node: NodeRecord, request: v1.WorkloadCsr | v1.SignJwtRequest) -> _Refusal:
    """One answer for "there is none" and "it is another node's": a node learns nothing of what isn't its own."""
    name = f"{request.tenant}/{request.entry}"
    return _Refusal(
        grpc.StatusCode.PERMISSION_DENIED, f"no WorkloadEntry {name[:130]} names node {node.node} under spec.nodes"
    )


def _is_for(entry: WorkloadEntry, node: NodeRecord, request: v1.WorkloadCsr | v1.SignJwtRequest) -> bool:
    # The record's own word for its name too: a certificate's tenant never hangs on how a key was put together.
    named = (entry.metadata.tenant, entry.metadata.name) == (request.tenant, request.entry)
    return named and node.node in entry.spec.nodes


def _take(rate: Rate, caller: str, who: str, now: datetime, what: str = "certificates") -> None:
    wait_s = rate.take(caller, now)
    if wait_s:
        limited = Limited(who, what, rate.pace, wait_s)
        raise _Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(limited), limited)
