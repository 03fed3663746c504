"""Does a peer's chain prove the identity that its leaf claims?

TLS proves that the peer holds the leaf's key and little more: a TLS stack takes two URIs, a CA as a leaf, an ID of one
trust domain signed by another's authority, and calls after the leaf's end on an open connection. So every server of
ours asks here, on each call.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, VerificationError

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import Clock, seconds_of
from meshwarden.certs.csr import check_key
from meshwarden.certs.error import UNREADABLE, CertsError
from meshwarden.certs.spiffe_id import ForeignId, SpiffeId
from meshwarden.certs.svid import InvalidSvid, id_of

# How many intermediates may stand between a leaf and its root.
MAX_DEPTH = 4
MAX_CHAIN = 8
MAX_CERTIFICATE_SIZE_BYTES = 16 * 1024
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class PeerRefused(CertsError):
    """A peer's certificates don't prove an identity; the message is the reason."""


@dataclass(frozen=True)
class VerifiedPeer:
    """A peer whose identity is proved, within a window of time."""

    spiffe_id: SpiffeId
    leaf: x509.Certificate
    # When the first certificate of its chain, the root included, ends.
    not_after: datetime
    # When the last of them begins.
    not_before: datetime

    @property
    def serial(self) -> str:
        """The serial number of the leaf, in hexadecimal."""
        return f"{self.leaf.serial_number:x}"


def _require_signing(_: object, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the issuer's key usage lacks keyCertSign")


# The leaf's own extensions are checked by hand in `_check_leaf`: the library's profile is that of web servers.
_LEAF_POLICY = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_signing)
)


def verify_chain(chain_der: Sequence[bytes], bundles: Mapping[str, Bundle], now: datetime) -> VerifiedPeer:
    """Verifies a chain against the bundle of the trust domain that its leaf names, and no other.

    Args:
        chain_der: certificates in DER, the leaf first; the root may be missing.
        bundles: {trust domain: bundle}.
        now: the moment to verify for, aware.

    Raises:
        PeerRefused: the chain is missing, too long or unreadable; the leaf is no SVID; its trust domain is unknown;
            or no valid path leads to a root of that trust domain now.
    Source:
        X509-SVID §5; RFC 5280 §6. URI name constraints aren't supported: a path under such an authority is refused.
    """
    chain = _parse(chain_der)
    try:
        spiffe_id = id_of(chain[0])
    except InvalidSvid as error:
        raise PeerRefused(str(error)) from None
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None:
        raise PeerRefused(f"{spiffe_id}: trust domain {spiffe_id.trust_domain!r} isn't trusted here")
    try:
        _check_leaf(chain[0])
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise PeerRefused(f"{spiffe_id}: an extension of the certificate is missing or unreadable") from None
    path = _path(spiffe_id, chain, bundle, now)
    return VerifiedPeer(
        spiffe_id,
        chain[0],
        not_after=min(certificate.not_valid_after_utc for certificate in path),
        not_before=max(certificate.not_valid_before_utc for certificate in path),
    )


def _parse(chain_der: Sequence[bytes]) -> list[x509.Certificate]:
    if not chain_der:
        raise PeerRefused("no certificate: give the client one")
    if len(chain_der) > MAX_CHAIN:
        raise PeerRefused(f"chain of {len(chain_der)} certificates: at most {MAX_CHAIN} are taken")
    if any(len(der) > MAX_CERTIFICATE_SIZE_BYTES for der in chain_der):
        raise PeerRefused(f"certificate of more than {MAX_CERTIFICATE_SIZE_BYTES} bytes")
    try:
        chain = [x509.load_der_x509_certificate(der) for der in chain_der]
    except UNREADABLE:
        raise PeerRefused("chain: not X.509 certificates in DER") from None
    # A certificate ends with its signature, and before that stands how many of its last bits count for nothing. Where
    # they are zero it might say 1 as well as 0: one certificate written in two ways.
    if any(der[-len(certificate.signature) - 1] for der, certificate in zip(chain_der, chain, strict=True)):
        raise PeerRefused("chain: a signature isn't of whole bytes")
    return chain


def _check_leaf(leaf: x509.Certificate) -> None:
    """Checks what X509-SVID §4 asks of a leaf and path validation doesn't."""
    if leaf.serial_number <= 0:
        raise PeerRefused("the leaf's serial number isn't positive")
    extensions = leaf.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise PeerRefused("the leaf is a certificate authority")
    except x509.ExtensionNotFound:
        pass  # RFC 5280: without it, it is no authority
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    if not usage.critical or not usage.value.digital_signature:
        raise PeerRefused("the leaf's key usage isn't critical with digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise PeerRefused("the leaf's key usage has keyCertSign or cRLSign")
    try:
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise PeerRefused("the leaf's extended key usage lacks clientAuth")
    except x509.ExtensionNotFound:
        pass  # X509-SVID §4.4: it SHOULD be there
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    if not leaf.subject.rdns and not names.critical:
        raise PeerRefused("the leaf has no subject and its alternative name isn't critical")
    if check_key(leaf.public_key()) is None:
        raise PeerRefused("the leaf's key is none of P-256, P-384 and RSA of 2048 to 4096 bits")


def _path(
    spiffe_id: SpiffeId, chain: list[x509.Certificate], bundle: Bundle, now: datetime
) -> Sequence[x509.Certificate]:
    leaf = chain[0]
    # A verifier freezes its time when it is built, so each check builds its own.
    window = f"valid {leaf.not_valid_before_utc.isoformat()} to {leaf.not_valid_after_utc.isoformat()}"
    if now < leaf.not_valid_before_utc:
        raise PeerRefused(
            f"{spiffe_id}: the certificate isn't valid yet ({window}), and here it is {now.isoformat()}: a clock is "
            "off by more than what issuing allows for; see to the clocks of both"
        )
    if now > leaf.not_valid_after_utc:
        raise PeerRefused(f"{spiffe_id}: the certificate has expired ({window})")
    try:
        verifier = (
            PolicyBuilder()
            .store(bundle.store)
            .time(now)
            .max_chain_depth(MAX_DEPTH)
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .build_client_verifier()
        )
        path = verifier.verify(leaf, chain[1:]).chain
    except VerificationError as error:
        raise PeerRefused(f"{spiffe_id}: no valid path to a root of its trust domain: {error}"[:500]) from None
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise PeerRefused(f"{spiffe_id}: a certificate of the chain is malformed") from None
    # The root is trusted for being in the bundle, not for its own signature.
    if not all(isinstance(certificate.signature_hash_algorithm, _HASHES) for certificate in path[:-1]):
        raise PeerRefused(f"{spiffe_id}: a signature of the chain isn't made with SHA-256, SHA-384 or SHA-512")
    return path


class PeerVerifier:
    """Verifies peers call by call; the costly part once for each leaf and bundle.

    Every check looks at the time, at whether the bundle is still the one that the leaf was verified against, and at the
    deny hook, so that expiry, a root's removal and a ban hold on open connections too. Not thread-safe by itself; each
    step keeps the cache whole, so threads may at worst verify a leaf twice.
    """

    def __init__(
        self,
        bundles: Callable[[], Mapping[str, Bundle]],
        clock: Clock,
        denied: Callable[[VerifiedPeer], str | None] | None = None,
        capacity: int = 4096,
        home: str = "",
    ) -> None:
        """Makes a verifier.

        Args:
            bundles: returns {trust domain: bundle}; a changed bundle is a new object.
            clock: the present, aware.
            denied: why a proved identity is refused all the same, or None; without it nobody is.
            capacity: how many leaves are remembered.
            home: the trust domain whose tenants are ours; whoever is of another one is a `ForeignId`. Without it there
                is to be one bundle.
        """
        self._bundles = bundles
        self._clock = clock
        self._now_s = seconds_of(clock)
        self.denied = denied
        self._capacity, self._home = capacity, home
        # {leaf in DER: (whose it is, its trust domain, the bundle that says so, from when and until when in seconds)}
        self._cache: OrderedDict[bytes, tuple[VerifiedPeer, str, Bundle, float, float]] = OrderedDict()

    def check(self, chain_der: Sequence[bytes]) -> VerifiedPeer:
        """Returns who the peer is, now.

        Raises:
            PeerRefused: its chain doesn't prove it, or the identity is denied.
        """
        # The leaf alone is the key: TLS has proved that the peer holds its key, and that a path from it leads to a root
        # of this bundle stays true whatever else the peer sends along.
        found = self._cache.get(chain_der[0]) if chain_der else None
        peer: VerifiedPeer | None = None
        if found is not None:
            peer, trust_domain, bundle, from_s, until_s = found
            if self._bundles().get(trust_domain) is not bundle or not from_s <= self._now_s() <= until_s:
                peer = None
        if peer is None:
            peer = self._verify(chain_der)
        denied = self.denied  # another thread may take it away
        if denied is not None:
            reason = denied(peer)
            if reason is not None:
                raise PeerRefused(f"{peer.spiffe_id}: {reason}")
        return peer

    def _verify(self, chain_der: Sequence[bytes]) -> VerifiedPeer:
        leaf, bundles = chain_der[0] if chain_der else b"", self._bundles()
        self._cache.pop(leaf, None)
        peer = verify_chain(chain_der, bundles, self._clock())
        trust_domain = peer.spiffe_id.trust_domain
        if self._home and trust_domain != self._home:
            peer = replace(peer, spiffe_id=ForeignId(trust_domain, peer.spiffe_id.path))
        window = peer.not_before.timestamp(), peer.not_after.timestamp()
        self._cache[leaf] = (peer, trust_domain, bundles[trust_domain], *window)
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return peer
