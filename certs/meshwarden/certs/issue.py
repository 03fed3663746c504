"""Makes certificates. What is signed is parsed and verified again before it leaves."""

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import PrivateKey, PublicKey, spki
from meshwarden.certs.error import CertsError
from meshwarden.certs.issued import IssuedVerifier
from meshwarden.certs.leaf_der import leaf_tbs, signature_algorithm, signed
from meshwarden.certs.spiffe_id import SpiffeId, check_trust_domain
from meshwarden.certs.verify import PeerRefused, VerifiedPeer, verify_chain

ROOT_TTL = timedelta(days=3650)
INTERMEDIATE_TTL = timedelta(days=7)
MAX_LEAF_TTL = timedelta(days=1)
# Absorbs clocks that are behind ours; it is part of the stated TTL, not added to it.
BACKDATING = timedelta(seconds=60)
# X.520.
MAX_COMMON_NAME = 64
_HOST = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class IssueRefused(CertsError):
    """A certificate isn't issued: what is asked for, or what came of it, isn't sound."""


@dataclass(frozen=True)
class LeafTemplate:
    """What a leaf shall say. It comes from a registration, never from a request."""

    spiffe_id: SpiffeId
    # The whole validity, backdating included; whole seconds, at most a day.
    ttl: timedelta
    dns_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ttl % timedelta(seconds=1) or not timedelta(0) < self.ttl <= MAX_LEAF_TTL:
            raise IssueRefused(f"{self.spiffe_id}: TTL {self.ttl}: give whole seconds, at most {MAX_LEAF_TTL}")
        for name in self.dns_names:
            if _HOST.fullmatch(name) is None:
                raise IssueRefused(f"{self.spiffe_id}: {name[:255]!r} is not a DNS name in lower case")


@dataclass(frozen=True)
class IssuerKey:
    """A key that signs, and the certificates that say so."""

    key: PrivateKey = field(repr=False)
    # The issuer's own certificate first, its root last; a root that signs itself is alone.
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """The issuer's own certificate."""
        return self.chain[0]

    @property
    def root(self) -> x509.Certificate:
        """Where its chain ends."""
        return self.chain[-1]

    @functools.cached_property
    def not_after(self) -> datetime:
        """When the first certificate of its chain ends: nothing that it signs may outlive that."""
        return min(certificate.not_valid_after_utc for certificate in self.chain)

    @functools.cached_property
    def name(self) -> bytes:
        """By what name leaves know it, in DER."""
        return self.certificate.subject.public_bytes()

    @functools.cached_property
    def identifier(self) -> bytes:
        """By what key identifier leaves know it, in DER."""
        return issuer_identifier(self.certificate).public_bytes()

    @functools.cached_property
    def algorithm(self) -> bytes:
        """By what algorithm it signs leaves, in DER."""
        return signature_algorithm(self.key)

    @functools.cached_property
    def verifier(self) -> IssuedVerifier:
        """Verifies what it has signed."""
        return IssuedVerifier(self.chain)


def control_plane_dns_name(trust_domain: str) -> str:
    """Returns the DNS name by which clients know the control plane; no workload ever gets it."""
    return f"controlplane.{trust_domain}"


def region_dns_name(trust_domain: str, region: str) -> str:
    """Returns the DNS name by which other regions know a region's control plane; no workload ever gets it."""
    return f"{region}.{control_plane_dns_name(trust_domain)}"


def is_reserved_dns_name(name: str, trust_domain: str) -> bool:
    """Says whether a DNS name is the control plane's, below it, the trust domain itself, or every machine's own."""
    name = name.lower().rstrip(".")
    reserved = control_plane_dns_name(trust_domain)
    return name in (trust_domain, reserved, "localhost") or name.endswith((f".{reserved}", ".localhost"))


@functools.lru_cache(maxsize=64)  # those of a batch are of one moment
def validity(now: datetime, ttl: timedelta) -> tuple[datetime, datetime]:
    """Returns (notBefore, notAfter), exactly `ttl` apart; a minute of it, or a quarter if less, is behind us."""
    start = now.replace(microsecond=0)
    not_before = start - min(BACKDATING, timedelta(seconds=ttl // timedelta(seconds=4)))
    return not_before, not_before + ttl


def issue_leaf(
    template: LeafTemplate, public_key: PublicKey, issuer: IssuerKey, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Signs a leaf and returns it with its intermediates, without the root.

    Args:
        template: what it says.
        public_key: whose it is.
        issuer: who signs.
        now: the present, aware.

    Raises:
        IssueRefused: the leaf would outlive its issuer, or the signed chain doesn't verify.
    Source:
        X509-SVID §2 to §4; RFC 5280 §4.2.1.6 (critical without a subject).
    """
    not_before, not_after = validity(now, template.ttl)
    if not_after > issuer.not_after:
        raise IssueRefused(f"{template.spiffe_id}: would outlive its issuer, which ends {issuer.not_after.isoformat()}")
    tbs = leaf_tbs(
        serial=x509.random_serial_number(),
        issuer=issuer.name,
        authority_key=issuer.identifier,
        validity=(not_before, not_after),
        subject=leaf_name(template).public_bytes(),
        spki=spki(public_key),
        uri=str(template.spiffe_id),
        dns_names=template.dns_names,
        signature=issuer.algorithm,
    )
    try:
        peer = issuer.verifier.verify(signed(tbs, issuer.key), template.spiffe_id.trust_domain, now)
    except PeerRefused as error:
        raise IssueRefused(f"{template.spiffe_id}: what was signed doesn't verify: {error}") from None
    _hold(peer, template, public_key)
    return (peer.leaf, *issuer.chain[:-1])


def leaf_name(template: LeafTemplate) -> x509.Name:
    """Returns a leaf's subject: its first DNS name, where X.520 has room for it; else none.

    It proves nothing, and nobody of ours looks at it; but Vault's `cert` login knows an entity by no other name.
    """
    first = template.dns_names[0] if template.dns_names else ""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, first)] if 0 < len(first) <= MAX_COMMON_NAME else [])


def check_leaf(
    template: LeafTemplate,
    public_key: PublicKey,
    chain: tuple[x509.Certificate, ...],
    root: x509.Certificate,
    now: datetime,
    rounding: timedelta = timedelta(0),
) -> tuple[x509.Certificate, ...]:
    """Reads a signed chain from its bytes and holds it against what was asked for.

    Args:
        template: what the leaf shall say.
        public_key: whose it is.
        chain: the leaf and its intermediates.
        root: where they must lead.
        now: the present, aware.
        rounding: by how much the leaf's life may be shorter than asked for; never longer.

    Returns:
        The chain, as it was read.

    Raises:
        IssueRefused: it doesn't verify, or says something else.
    """
    ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
    trust_domain = template.spiffe_id.trust_domain
    try:
        peer = verify_chain(ders, {trust_domain: Bundle(trust_domain, (root,))}, now)
    except PeerRefused as error:
        raise IssueRefused(f"{template.spiffe_id}: what was signed doesn't verify: {error}") from None
    _hold(peer, template, public_key, rounding)
    return (peer.leaf, *chain[1:])


def _hold(
    peer: VerifiedPeer, template: LeafTemplate, public_key: PublicKey, rounding: timedelta = timedelta(0)
) -> None:
    """Holds a leaf, as it was read from its bytes and verified, against what was asked for.

    Raises:
        IssueRefused: it says something else.
    """
    leaf = peer.leaf
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if (
        peer.spiffe_id != template.spiffe_id
        or not template.ttl - rounding <= leaf.not_valid_after_utc - leaf.not_valid_before_utc <= template.ttl
        or sorted(names.get_values_for_type(x509.DNSName)) != sorted(template.dns_names)
        or leaf.public_key() != public_key
    ):
        raise IssueRefused(f"{template.spiffe_id}: what was signed isn't what was asked for")


def self_signed_root(trust_domain: str, key: PrivateKey, now: datetime, ttl: timedelta = ROOT_TTL) -> x509.Certificate:
    """Makes the root of a trust domain.

    Source:
        X509-SVID §3.2 (an authority's SPIFFE ID has no path), §4.1, §4.3.
    """
    not_before, not_after = validity(now, ttl)
    public_key = key.public_key()
    name = authority_name(trust_domain, "root", public_key)
    return _authority(name, name, public_key, not_before, not_after, trust_domain, None).sign(key, hashes.SHA256())


def browser_root(root: IssuerKey, names: Sequence[str]) -> x509.Certificate:
    """Signs a root anew for browsers: of the same name and key, so that the same chains lead there, but good for less.

    Of what the root signs it proves servers of these names, or of names below them, and of loopback addresses.

    Args:
        root: the root, and its key.
        names: DNS names in lower case.

    Source:
        RFC 5280 §4.2.1.10 (critical; a type of name that isn't mentioned isn't limited: hence addresses), §4.2.1.12.
    """
    known = root.certificate
    loopback = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
    permitted = [*map(x509.DNSName, dict.fromkeys(names)), *map(x509.IPAddress, loopback)]
    limits = x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None)
    life = known.not_valid_before_utc, known.not_valid_after_utc
    builder = _start(known.subject, known.subject, root.key.public_key(), *life)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(limits, critical=True)
        .sign(root.key, hashes.SHA256())
    )


def sign_intermediate(
    trust_domain: str, public_key: PublicKey, issuer: IssuerKey, now: datetime, ttl: timedelta = INTERMEDIATE_TTL
) -> tuple[x509.Certificate, ...]:
    """Signs an authority that may sign leaves only; returns its chain, the root last.

    It ends with its issuer at the latest.

    Raises:
        IssueRefused: the issuer has ended.
    """
    not_before, not_after = validity(now, ttl)
    not_after = min(not_after, issuer.not_after)
    if not_after <= now:
        raise IssueRefused(f"{trust_domain}: the root has ended, {issuer.not_after.isoformat()}")
    name = authority_name(trust_domain, "issuing", public_key)
    builder = _authority(name, issuer.certificate.subject, public_key, not_before, not_after, trust_domain, 0)
    builder = builder.add_extension(issuer_identifier(issuer.certificate), critical=False)
    return (builder.sign(issuer.key, hashes.SHA256()), *issuer.chain)


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: PublicKey,
    not_before: datetime,
    not_after: datetime,
    trust_domain: str,
    path_length: int | None,
) -> x509.CertificateBuilder:
    uri = x509.UniformResourceIdentifier(f"spiffe://{check_trust_domain(trust_domain)}")
    return (
        _start(subject, issuer, public_key, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    )


def _start(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, not_before: datetime, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def authority_name(trust_domain: str, what: str, public_key: PublicKey) -> x509.Name:
    """Names an authority apart from every other of its trust domain, so that paths are found by name alone."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki(public_key))
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Meshwarden"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{what} of {trust_domain}"[:MAX_COMMON_NAME]),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, digest.finalize()[:8].hex()),
        ]
    )


def name_text(name: x509.Name) -> str:
    """Writes a name for people; RFC 4514 has no short name for the number that ours end in."""
    return name.rfc4514_string({NameOID.SERIAL_NUMBER: "serialNumber"})


def issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Returns how what an authority has signed names its key."""
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def key_usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    """Returns a key usage that allows this and nothing else."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
