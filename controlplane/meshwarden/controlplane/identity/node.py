"""Nodes join, renew their certificates, and have those of their workloads signed.

What is issued is recorded here; a call that is refused as a whole is recorded at the edge, as every refused call is.
"""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.csr import PublicKey, parse_csr, spki
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import Denied, authorize
from meshwarden.controlplane.identity.join_token import REPEAT, JoinTokens
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.record import NodeRecord, TokenRecord, Use, node_key
from meshwarden.controlplane.identity.workload import WorkloadSigner
from meshwarden.controlplane.store.port import ABSENT, Ambiguous, Conflict, Put, Store
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
        tokens: JoinTokens,
        audit: AuditLog,
        clock: Callable[[], datetime],
        *,
        trust_domain: str,
        region: str,
        denied: Callable[[SpiffeId], str] = lambda _: "",
        jwt: JwtAuthority | None = None,
    ) -> None:
        self._authority, self._store, self._tokens, self._audit = authority, store, tokens, audit
        self._clock = clock
        self._trust_domain, self._region, self._denied = trust_domain, region, denied
        self._signer = WorkloadSigner(authority, store, audit, clock, trust_domain=trust_domain, denied=denied, jwt=jwt)

    async def attest(self, token: str, csr: bytes, address: str) -> v1.AttestResponse:
        """Gives a new node its identity, and uses its token up.

        The same token with the same key gets the same certificate for a minute.

        Args:
            token: the join token.
            csr: a request in DER, of which the public key is used.
            address: where the node calls from, for the audit log.

        Raises:
            Denied: the token is unknown, has ended, or was used for another key.
            InvalidCsr: the request is refused; the token is still good.
            AuthorityError: nobody can sign; the token is still good.
            StoreError: the node can't be stored.
        """
        # Two requests with one token meet in the store: who loses looks again, and learns what the other did.
        for _ in range(ATTEMPTS):
            try:
                return await self._attest(token, csr, address)
            except (Conflict, Ambiguous) as error:
                failure = error
        raise failure

    async def _attest(self, token: str, csr: bytes, address: str) -> v1.AttestResponse:
        found = await self._tokens.find(token)
        if found is None:
            raise Denied("join token: unknown. Make one with `meshwarden token create`; it is good for one node, once")
        record, revision = found
        now = self._clock()
        if record.use is None and now >= record.expire_time:
            raise Denied(f"join token of {record.node!r}: it ended at {record.expire_time.isoformat()}. Make a new one")
        # Verifying a request costs something, so a stranger without a token doesn't get that far.
        public_key = parse_csr(csr)
        key_hash = hashlib.sha256(spki(public_key)).hexdigest()
        if record.use is not None:
            return await self._repeat(record, record.use, key_hash, address, now)
        chain = await self._sign_node(record.node, public_key, csr, now)
        ders = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
        node = NodeRecord(record.node, now, address, f"{chain[0].serial_number:x}", record.tenants)
        stored, _ = await self._store.get(node.key)
        revision = await self._store.commit(
            [
                Put(record.key, record.used(Use(now, key_hash, ders)).encode(), revision),
                Put(node.key, node.encode(), stored.revision if stored is not None else ABSENT),
            ]
        )
        rejoined, scope = stored is not None, list(record.tenants)
        own_span.note_revision(revision, f"{'JOINED again' if rejoined else 'JOINED'} node {node.node}")
        await self._record(
            "node.attest", chain, node=node.node, address=address, key=key_hash, tenants=scope, rejoined=rejoined
        )
        return await self._answer(record.node, ders)

    async def _repeat(
        self, record: TokenRecord, use: Use, key_hash: str, address: str, now: datetime
    ) -> v1.AttestResponse:
        """Answers for a token that is used up already."""
        used = f"join token of {record.node!r}: it was used up at {use.time.isoformat()}"
        if key_hash != use.key_hash:
            raise Denied(f"{used} by another key. If that wasn't your node, somebody else holds its identity")
        if now - use.time > REPEAT:
            raise Denied(f"{used}. The node has its identity; use that")
        # As complete as the first event, which may be missing: the audit log can have failed between.
        leaf = x509.load_der_x509_certificate(use.chain[0])
        fields = {"node": record.node, "address": address, "key": key_hash, "tenants": list(record.tenants)}
        await self._record("node.attest_repeat", (leaf,), **fields)
        return await self._answer(record.node, use.chain)

    async def renew(self, peer: Peer, csr: bytes) -> v1.RenewResponse:
        """Gives a node its next certificate.

        Args:
            peer: the node, by its present certificate.
            csr: a request in DER, of which the public key is used.

        Raises:
            Denied: the caller is no node of this region, or has not joined.
            InvalidCsr: the request is refused.
            AuthorityError: nobody can sign.
        """
        node = await self.joined(peer, SERVICE + "Renew")
        public_key = parse_csr(csr)
        chain = await self._sign_node(node, public_key, csr, self._clock())
        await self._record("node.renew", chain, node=node, key=hashlib.sha256(spki(public_key)).hexdigest())
        return v1.RenewResponse(chain=[certificate.public_bytes(Encoding.DER) for certificate in chain])

    async def sign_workloads(self, peer: Peer, requests: Iterable[v1.WorkloadCsr]) -> v1.SignWorkloadResponse:
        """Signs certificates for entries that name the calling node; each request is answered by itself.

        Args:
            peer: the node, by its certificate.
            requests: at most 500.

        Raises:
            Denied: the caller is no node of this region, or has not joined.
            StoreError: entries can't be read.
        """
        return await self._signer.sign(await self.record(peer, SERVICE + "SignWorkload"), list(requests))

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
            Denied: it is no node, none of this region, or has not joined or was removed.
            StoreError: its record can't be read.
        """
        caller = _id_of(peer)
        authorize(caller, method, None)
        if caller is None or caller.role is not Role.NODE or caller.node is None:
            raise Denied(f"{caller}: is no node")  # the table says so too; here the type does
        if caller.trust_domain != self._trust_domain or caller.region != self._region:
            raise Denied(f"{caller}: is no node of region {self._region!r} of {self._trust_domain!r}")
        stored, _ = await self._store.get(node_key(caller.node))
        if stored is None:
            raise Denied(f"{caller}: has not joined, or was removed; join with `meshwarden token create {caller.node}`")
        return NodeRecord.decode(stored.key, stored.value)

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


def _id_of(peer: Peer) -> SpiffeId | None:
    return peer.spiffe_id if isinstance(peer, VerifiedPeer) else peer
