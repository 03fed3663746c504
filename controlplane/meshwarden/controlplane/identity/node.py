"""Nodes join, renew their certificates, and have those of their workloads signed.

What is issued is recorded here; a call that is refused as a whole is recorded at the edge, as every refused call is.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.csr import PublicKey, parse_csr, spki
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.attestor import Attempt, Attested, Attestor, Challenge, Seal
from meshwarden.controlplane.identity.authorize import Denied, authorize
from meshwarden.controlplane.identity.join_token import REPEAT
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.known import Known
from meshwarden.controlplane.identity.rate import Limited, Limits, Rate, network_of
from meshwarden.controlplane.identity.record import BanRecord, NodeRecord, TokenRecord, Use, ban_key, node_key
from meshwarden.controlplane.identity.workload import WorkloadSigner
from meshwarden.controlplane.store.port import ABSENT, Ambiguous, Check, Conflict, Op, Put, Store
from meshwarden.sdk.mtls.refusal import BANNED, UNKNOWN_NODE
from meshwarden.sdk.tracing import own_span
from meshwarden.v1 import node_service_pb2 as v1

NODE_TTL = timedelta(hours=1)
ATTEMPTS = 3
SERVICE = "/meshwarden.v1.NodeService/"
Peer = SpiffeId | VerifiedPeer | None


class NodeIdentity:
    """Answers what node agents ask about identity."""

    def __init__(
        self,
        authority: Authority,
        store: Store,
        attestors: Mapping[str, Attestor],
        audit: AuditLog,
        clock: Callable[[], datetime],
        *,
        trust_domain: str,
        region: str,
        denied: Callable[[SpiffeId], str] = lambda _: "",
        jwt: JwtAuthority | None = None,
        limits: Limits | None = None,
        known: Known | None = None,
        reserved: Collection[str] = (),
    ) -> None:
        """Puts together what is asked.

        Args:
            authority: signs.
            store: has the nodes.
            attestors: {a proof of AttestRequest: what judges it}.
            audit: learns of all that is issued.
            clock: the present, aware.
            trust_domain: ours.
            region: ours.
            denied: why an identity is refused, or empty.
            jwt: signs JWT-SVIDs; None if nobody does.
            limits: how much each may ask for; None for the defaults.
            known: what is in memory already; None for nothing.
            reserved: DNS names that no workload gets.
        """
        limits = limits or Limits()
        self._authority, self._store, self._attestors, self._audit = authority, store, attestors, audit
        self._clock, self._known = clock, known or Known()
        self._trust_domain, self._region, self._denied = trust_domain, region, denied
        self._seal = Seal()
        self._of_address, self._of_node = Rate(limits.attests_of_address), Rate(limits.certificates_of_node)
        self._signer = WorkloadSigner(
            authority,
            store,
            audit,
            clock,
            trust_domain=trust_domain,
            denied=denied,
            limits=limits,
            jwt=jwt,
            known=self._known,
            reserved=reserved,
        )

    async def attest(self, request: v1.AttestRequest, address: str, connection: str) -> v1.AttestResponse:
        """Gives a node its identity for a proof of which one it is, or challenges it.

        The same join token with the same key gets the same certificate for a minute.

        Args:
            request: what it sent, within the schema's rules.
            address: where it calls from.
            connection: names the connection that it calls on.

        Raises:
            Limited: the address, or the node, asks for too much.
            Denied: the proof isn't taken, or the node is banned.
            InvalidCsr: the request is refused; a token is still good.
            AuthorityError: nobody can sign, or judge the proof; a token is still good.
            StoreError: the node can't be stored.
        """
        now, network = self._clock(), network_of(address)
        _take(self._of_address, network, f"address {network}", "attestations", now)
        kind = request.WhichOneof("proof") or ""
        attestor = self._attestors.get(kind)
        if attestor is None:
            taken = ", ".join(sorted(self._attestors))
            raise Denied(
                f"no attestor for {kind}: this control plane takes {taken}; see [[attestor]] in docs/identity.md"
            )
        attempt = Attempt(request, address, connection, now)
        if request.HasField("answer"):
            attempt = replace(attempt, answered=self._seal.open(kind, attempt))
        # Two requests with one token meet in the store: who loses looks again, and learns what the other did.
        for _ in range(ATTEMPTS):
            try:
                found = await attestor.attest(attempt)
                if isinstance(found, Challenge):
                    return v1.AttestResponse(challenge=self._seal.close(found, kind, attempt))
                return await self._attest(found, kind, attempt)
            except (Conflict, Ambiguous) as error:
                failure = error
        raise failure

    async def _attest(self, found: Attested, kind: str, attempt: Attempt) -> v1.AttestResponse:
        await self._refuse_banned(found.node)
        _take(self._of_node, found.node, f"node {found.node}", "certificates", attempt.now)
        # Verifying a request costs something, so a stranger without a proof doesn't get that far.
        public_key = parse_csr(attempt.request.csr)
        key_hash = hashlib.sha256(spki(public_key)).hexdigest()
        about = {
            "node": found.node,
            "attestor": kind,
            "address": attempt.address,
            "key": key_hash,
            "tenants": list(found.tenants),
            **found.about,
        }
        stored = await self._find(found.node)
        if found.token is not None and (use := found.token[0].use) is not None:
            return await self._repeat(found.token[0], use, stored, about, attempt.now)
        if stored is not None and found.token is None and stored.attestor != kind:
            raise Denied(
                f"node {found.node} has joined by {stored.attestor}, and {kind} can't take its place: if it is to, "
                f"`meshwarden node evict {found.node}` first"
            )
        chain = await self._sign_node(found.node, public_key, attempt.request.csr, attempt.now)
        ders = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
        serial = f"{chain[0].serial_number:x}"
        node = NodeRecord(found.node, attempt.now, attempt.address, serial, found.tenants, kind, (serial,))
        ops: list[Op] = [
            Put(node.key, node.encode(), stored.revision if stored is not None else ABSENT),
            Check(ban_key(node.node), ABSENT),
        ]
        if found.token is not None:
            token, revision = found.token
            ops.append(Put(token.key, token.used(Use(attempt.now, key_hash, ders)).encode(), revision))
        revision = await self._store.commit(ops)
        rejoined = stored is not None
        own_span.note_revision(revision, f"{'JOINED again' if rejoined else 'JOINED'} node {node.node}")
        await self._record("node.attest", chain, **about, rejoined=rejoined)
        return await self._answer(found.node, ders)

    async def _repeat(
        self, token: TokenRecord, use: Use, stored: NodeRecord | None, about: Mapping[str, object], now: datetime
    ) -> v1.AttestResponse:
        """Answers for a token that is used up already."""
        used = f"join token of {token.node!r}: it was used up at {use.time.isoformat()}"
        if about["key"] != use.key_hash:
            raise Denied(f"{used} by another key. If that wasn't your node, somebody else holds its identity")
        if now - use.time > REPEAT:
            raise Denied(f"{used}. The node has its identity; use that")
        leaf = x509.load_der_x509_certificate(use.chain[0])
        if stored is None or stored.serial != f"{leaf.serial_number:x}":
            raise Denied(f"{used}, and the node was evicted or has joined again since. Make a new one")
        # As complete as the first event, which may be missing: the audit log can have failed between.
        await self._record("node.attest_repeat", (leaf,), **about)
        return await self._answer(token.node, use.chain)

    async def renew(self, peer: Peer, csr: bytes) -> v1.RenewResponse:
        """Gives a node its next certificate.

        Args:
            peer: the node, by its present certificate.
            csr: a request in DER, of which the public key is used.

        Raises:
            Denied: the caller is no node of this region, or has not joined.
            Limited: it asks for too many.
            InvalidCsr: the request is refused.
            AuthorityError: nobody can sign.
            StoreError: it can't be stored, and so isn't given.
        """
        node = self._find_known(peer, SERVICE + "Renew") or await self.record(peer, SERVICE + "Renew")
        now = self._clock()
        _take(self._of_node, node.node, f"node {node.node}", "certificates", now)
        public_key = parse_csr(csr)
        chain = await self._sign_node(node.node, public_key, csr, now)
        await self._keep_serial(peer, node, f"{chain[0].serial_number:x}")
        await self._record("node.renew", chain, node=node.node, key=hashlib.sha256(spki(public_key)).hexdigest())
        return v1.RenewResponse(chain=[certificate.public_bytes(Encoding.DER) for certificate in chain])

    async def _keep_serial(self, peer: Peer, node: NodeRecord, serial: str) -> None:
        """Makes a new certificate of a node's one of its good ones, if the node still is one of ours."""
        for _ in range(ATTEMPTS):
            present = peer.serial if isinstance(peer, VerifiedPeer) else node.serial
            try:
                await self._store.commit([Put(node.key, node.renewed(present, serial).encode(), node.revision)])
                return
            except (Conflict, Ambiguous) as error:
                failure = error
            node = await self.record(peer, SERVICE + "Renew")
        raise failure

    async def sign_workloads(self, peer: Peer, requests: Iterable[v1.WorkloadCsr]) -> v1.SignWorkloadResponse:
        """Signs certificates for entries that name the calling node; each request is answered by itself.

        Args:
            peer: the node, by its certificate.
            requests: at most 500.

        Raises:
            Denied: the caller is no node of this region, or has not joined.
            StoreError: entries can't be read.
        """
        method, wanted = SERVICE + "SignWorkload", list(requests)
        node = self._find_known(peer, method)
        if node is None or not all(node.serves(request.tenant) for request in wanted):
            node = await self.record(peer, method)
        return await self._signer.sign(node, wanted, lambda: self.record(peer, method))

    async def sign_jwt(self, peer: Peer, request: v1.SignJwtRequest) -> v1.SignJwtResponse:
        """Signs a JWT-SVID for an entry that names the calling node.

        Args:
            peer: the node, by its certificate.
            request: the entry, and for whom the token is.

        Raises:
            Denied: the caller is no node of this region, has not joined, or may not have this token.
            StoreError: the entry can't be read.
        """
        return await self._signer.sign_jwt(await self.record(peer, SERVICE + "SignJwt"), request)

    async def joined(self, peer: Peer, method: str) -> str:
        """Returns the name of the calling node; see `record`."""
        return (await self.record(peer, method)).node

    async def record(self, peer: Peer, method: str) -> NodeRecord:
        """Returns what is stored of the calling node, once it is known to be one of ours.

        Args:
            peer: the node, by its certificate.
            method: the full method that it calls, "/meshwarden.v1.NodeService/Sync".

        Raises:
            Denied: it is no node, none of this region, or has not joined, was removed, or is banned.
            StoreError: its record can't be read.
        """
        name = self._caller(peer, method)
        node = await self._find(name)
        if node is None:
            await self._refuse_banned(name)
            raise removed(name)
        if not _is_good(node, peer):
            raise removed(name)
        return node

    def _find_known(self, peer: Peer, method: str) -> NodeRecord | None:
        """Returns what is known of the calling node without a look at the store, if it speaks for the node.

        Raises:
            Denied: it is no node, or none of this region.
        """
        node = self._known.node(self._caller(peer, method))
        return node if node is not None and _is_good(node, peer) else None

    def _caller(self, peer: Peer, method: str) -> str:
        caller = _id_of(peer)
        authorize(caller, method, None)
        if caller is None or caller.role is not Role.NODE or caller.node is None:
            raise Denied(f"{caller}: is no node")  # the table says so too; here the type does
        if caller.trust_domain != self._trust_domain or caller.region != self._region:
            raise Denied(f"{caller}: is no node of region {self._region!r} of {self._trust_domain!r}")
        return caller.node

    async def _find(self, node: str) -> NodeRecord | None:
        stored, _ = await self._store.get(node_key(node))
        if stored is None:
            return None
        return replace(NodeRecord.decode(stored.key, stored.value), revision=stored.revision)

    async def _refuse_banned(self, node: str) -> None:
        stored, _ = await self._store.get(ban_key(node))
        if stored is not None:
            self._audit.note("node.banned_call", node=node)
            raise banned(BanRecord.decode(stored.key, stored.value))

    async def _sign_node(
        self, node: str, public_key: PublicKey, csr: bytes, now: datetime
    ) -> tuple[x509.Certificate, ...]:
        spiffe_id = SpiffeId.for_node(self._trust_domain, self._region, node)
        if reason := self._denied(spiffe_id):
            raise Denied(f"{spiffe_id}: {reason}")
        template = LeafTemplate(spiffe_id, NODE_TTL)
        return await self._authority.sign(template, public_key, now, csr)

    async def _record(self, event: str, chain: tuple[x509.Certificate, ...], **fields: object) -> None:
        leaf = chain[0]
        end = leaf.not_valid_after_utc.isoformat()
        await self._audit.record(event, serial=f"{leaf.serial_number:x}", not_after=end, **fields)

    async def _answer(self, node: str, chain: tuple[bytes, ...]) -> v1.AttestResponse:
        bundle = await self._authority.bundle()
        return v1.AttestResponse(chain=chain, bundle=bundle.to_proto(), node=node, region=self._region)


def _is_good(node: NodeRecord, peer: Peer) -> bool:
    """Whether a certificate is one of a node's: of one that was evicted and has come back only the new ones are."""
    return not isinstance(peer, VerifiedPeer) or not node.serials or peer.serial in node.serials


def banned(ban: BanRecord) -> Denied:
    """Returns what a banned node is told."""
    why = f": {ban.reason}" if ban.reason else ""
    return Denied(f"node {ban.node} is banned since {ban.time.isoformat(timespec='seconds')}{why}", code=BANNED)


def removed(node: str) -> Denied:
    """Returns what a node is told that has no record, or shows a certificate of before it got the present one."""
    return Denied(
        f"node {node} has not joined with this certificate, or was evicted: it has to attest again; with a join token, "
        f"make a new one: `meshwarden token create --node {node}`",
        code=UNKNOWN_NODE,
    )


def _take(rate: Rate, caller: str, who: str, what: str, now: datetime) -> None:
    """Takes one from a caller's pace.

    Raises:
        Limited: there is none.
    """
    wait_s = rate.take(caller, now)
    if wait_s:
        raise Limited(who, what, rate.pace, wait_s)


def _id_of(peer: Peer) -> SpiffeId | None:
    return peer.spiffe_id if isinstance(peer, VerifiedPeer) else peer
