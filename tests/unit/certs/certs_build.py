"""Certificates of every kind, the wrong ones above all, really built."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshwarden.certs.clock import utc_now

# The present, since TLS looks at a clock of its own.
NOW = utc_now().replace(microsecond=0)
WEB = "spiffe://a.test/tenant/acme/service/web"
HOUR = timedelta(hours=1)


def usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in names.split()})


def uri(text: str) -> x509.GeneralName:
    # Not as the library checks it: a URI with a newline is what an attacker would bring.
    return x509.UniformResourceIdentifier._init_without_validation(text)


@dataclass(frozen=True)
class Made:
    """A certificate with its key; `chain` is itself and what is above it, the root left out."""

    certificate: x509.Certificate
    key: Any
    above: tuple["Made", ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain(self) -> list[bytes]:
        return [self.der, *(made.der for made in self.above if made.above)]


@dataclass(frozen=True)
class Plan:
    """What a certificate shall be; each field breaks one thing."""

    key: Any = None
    names: tuple[x509.GeneralName, ...] = (uri(WEB),)
    names_critical: bool = True
    subject: x509.Name = field(default_factory=lambda: x509.Name([]))
    ca: bool | None = False
    path_length: int | None = None
    usage: x509.KeyUsage | None = field(default_factory=lambda: usage(digital_signature=True))
    usage_critical: bool = True
    purposes: tuple[x509.ObjectIdentifier, ...] | None = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    start: datetime = NOW - timedelta(minutes=1)
    end: datetime = NOW + HOUR
    hash: Any = field(default_factory=hashes.SHA256)
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    signer: Any = None

    def __call__(self, issuer: Made | None = None) -> Made:
        key = self.key or ec.generate_private_key(ec.SECP256R1())
        subject = self.subject
        parent = issuer.certificate.subject if issuer else subject
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(self.end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        signer = self.signer or (issuer.key if issuer else key)
        if issuer:
            above = issuer.certificate.public_key()
            builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), False)
        if self.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(self.names), self.names_critical)
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, self.path_length), True)
        if self.usage is not None:
            builder = builder.add_extension(self.usage, self.usage_critical)
        if self.purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), False)
        for extension, critical in self.extra:
            builder = builder.add_extension(extension, critical)
        made = builder.sign(signer, self.hash)
        return Made(made, key, (issuer, *issuer.above) if issuer else ())


def authority(name: str, **changes: Any) -> Plan:
    """The plan of a root or an intermediate."""
    plan = Plan(
        names=(),
        subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
        ca=True,
        usage=usage(key_cert_sign=True, crl_sign=True),
        purposes=None,
        end=NOW + timedelta(days=30),
    )
    return replace(plan, **changes)


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def numbered(made: Made, number: bytes) -> Made:
    """The same certificate with another serial number, as DER has it, signed anew by its issuer's P-256 key."""
    old = made.certificate.serial_number
    tbs = made.certificate.tbs_certificate_bytes
    content = tbs[-int.from_bytes(tbs[2:4], "big") :]  # each is longer than 255 bytes
    changed = content.replace(_der(2, old.to_bytes(old.bit_length() // 8 + 1, "big")), _der(2, number), 1)
    assert changed != content
    tbs = _der(0x30, changed)
    signature = made.above[0].key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    ecdsa_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    der = _der(0x30, tbs + ecdsa_sha256 + _der(3, b"\0" + signature))
    return replace(made, certificate=x509.load_der_x509_certificate(der))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")) + content


def resigned(made: Made, digest: hashes.SHA1 | hashes.MD5) -> Made:
    """The same certificate, signed with a broken hash by its issuer's RSA key: no builder makes one any more."""
    last = {"sha1": "05", "md5": "04"}[digest.name]
    sha256_oid, weak_oid = (bytes.fromhex("06092a864886f70d0101" + byte) for byte in ("0b", last))
    tbs = made.certificate.tbs_certificate_bytes.replace(sha256_oid, weak_oid)
    signature = made.above[0].key.sign(tbs, padding.PKCS1v15(), digest)
    der = made.der.replace(sha256_oid, weak_oid)
    assert der.count(weak_oid) == 2
    return replace(made, certificate=x509.load_der_x509_certificate(der[: -len(signature)] + signature))
