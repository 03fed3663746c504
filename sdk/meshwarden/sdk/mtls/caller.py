"""Who calls a server with threads, proved at each call by what TLS knows of its connection.

What is remembered is remembered of certificates, never of a connection or of its address: they are read from the
connection of the very call, so that whoever comes from a port that another had is another.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import Clock
from meshwarden.certs.deny import Denied, DenyList
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer

# On a server the second is without the leaf (BoringSSL, SSL_get_peer_cert_chain).
_LEAF: Final = b"x509_pem_cert"
_REST: Final = b"x509_pem_cert_chain"
_MAX_CALLERS: Final = 1024


class Caller:
    """Who shows some certificates, as long as the check says so at each call.

    Attributes:
        chain: the certificates in DER, leaf first; empty where none is shown.
        source: its SPIFFE ID as text, and whose its calls are (`SpiffeId.account`), once they are proved; before that
            they are empty.
    """

    __slots__ = ("chain", "home", "peer", "source", "tenant")

    def __init__(self, chain: tuple[bytes, ...], home: str) -> None:
        self.chain, self.home = chain, home
        self.peer: VerifiedPeer | None = None
        self.source = self.tenant = ""

    def name(self, peer: VerifiedPeer) -> None:
        """The check says anew who it is."""
        self.source, self.tenant = str(peer.spiffe_id), peer.spiffe_id.account(self.home)
        self.peer = peer  # last: whoever sees it sees the text of it


class Callers:
    """The callers of one server. Safe to share between threads."""

    def __init__(self, bundles: Callable[[], Mapping[str, Bundle]], clock: Clock, home: str) -> None:
        """See `PeerVerifier`; nobody is denied."""
        self._denied, self._home = Denied(clock), home
        self._verifier = PeerVerifier(bundles, clock, home=home)
        self._known: dict[tuple[bytes | None, ...], Caller] = {}

    def deny(self, deny_list: DenyList) -> None:
        """Refuses from now on whom `deny_list` names, and nobody else for that reason."""
        self._denied.present = deny_list
        # Where nobody is denied, which is nearly always, a call isn't asked about.
        self._verifier.denied = self._denied if deny_list else None

    def identify(self, context: Any) -> Caller:
        """Returns who makes a call, whose certificate is good now.

        Raises:
            PeerRefused: it is not.
        """
        try:
            # What `context.auth_context()` says, with its names as they are: to make text of all of them, at each call,
            # is more than half of what it takes.
            said = cygrpc.auth_context(context._rpc_event.call) or {}
        except AttributeError:  # a grpcio in which this is elsewhere, or a context of another kind
            said = {name.encode(): values for name, values in context.auth_context().items()}
        leaf, rest = said.get(_LEAF, ()), said.get(_REST, ())
        caller = self._known.get((*leaf, None, *rest)) or self._read(leaf, rest)
        peer = self._verifier.check(caller.chain)
        if caller.peer is not peer:
            caller.name(peer)
        return caller

    def is_good(self, caller: Caller) -> bool:
        """Whether the certificate of a caller is still good."""
        try:
            self._verifier.check(caller.chain)
        except PeerRefused:
            return False
        return True

    def _read(self, leaf: Sequence[bytes], rest: Sequence[bytes]) -> Caller:
        pem = b"".join(rest if tuple(rest[:1]) == tuple(leaf) else (*leaf, *rest))
        try:
            certificates = x509.load_pem_x509_certificates(pem) if pem else []
        except UNREADABLE:
            raise PeerRefused("chain: not X.509 certificates") from None
        chain = tuple(dict.fromkeys(certificate.public_bytes(Encoding.DER) for certificate in certificates))
        caller = Caller(chain, self._home)
        if len(self._known) >= _MAX_CALLERS:
            self._known.clear()
        self._known[(*leaf, None, *rest)] = caller
        return caller
