"""An X.509-SVID: an identity's certificates with their private key."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from meshwarden.certs.csr import PrivateKey
from meshwarden.certs.error import UNREADABLE, CertsError
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId


class InvalidSvid(CertsError):
    """Certificates are no SVID, or the key isn't theirs."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Makes a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def id_of(leaf: x509.Certificate) -> SpiffeId:
    """Returns the SPIFFE ID of a leaf.

    Raises:
        InvalidSvid: it has not exactly one URI, or that one is no SPIFFE ID.
    Source:
        X509-SVID §2.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise InvalidSvid("certificate: no readable subject alternative name") from None
    if len(uris) != 1:
        raise InvalidSvid(f"certificate: {len(uris)} URIs; an SVID has exactly one")
    try:
        return SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise InvalidSvid(f"certificate: {error}") from None


@dataclass(frozen=True)
class X509Svid:
    """An identity that its holder can prove. The key is never shown."""

    spiffe_id: SpiffeId
    # The leaf first; the root isn't in it.
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)

    @classmethod
    def of(cls, chain: Sequence[x509.Certificate], key: PrivateKey) -> "X509Svid":
        """Puts a chain and its key together.

        Raises:
            InvalidSvid: the chain is empty, its leaf is no SVID, or the key is another's.
        """
        if not chain:
            raise InvalidSvid("SVID: no certificate")
        if chain[0].public_key() != key.public_key():
            raise InvalidSvid("SVID: the key is not that of the certificate")
        return cls(id_of(chain[0]), tuple(chain), key)

    @classmethod
    def load(cls, chain_pem: bytes, key_pem: bytes) -> "X509Svid":
        """Reads a chain and its key from PEM.

        Raises:
            InvalidSvid: one of them can't be read, or they don't belong together.
        """
        try:
            chain = x509.load_pem_x509_certificates(chain_pem)
            key = load_pem_private_key(key_pem, None)
        except UNREADABLE:
            raise InvalidSvid("SVID: certificate or key can't be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidSvid("SVID: the key is neither an EC nor an RSA key")
        return cls.of(chain, key)

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the identity itself."""
        return self.chain[0]

    @property
    def not_before(self) -> datetime:
        """When the identity begins, aware, in UTC."""
        return self.leaf.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When the first certificate of the chain ends, aware, in UTC."""
        return min(certificate.not_valid_after_utc for certificate in self.chain)

    @property
    def serial(self) -> str:
        """The serial number of the leaf, in hexadecimal."""
        return f"{self.leaf.serial_number:x}"

    def chain_der(self) -> tuple[bytes, ...]:
        """Returns the certificates in DER, the leaf first."""
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in self.chain)

    def chain_pem(self) -> bytes:
        """Returns the certificates in PEM, the leaf first."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    def key_der(self) -> bytes:
        """Returns the private key in PKCS#8 DER, as the Workload API carries it."""
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def key_pem(self) -> bytes:
        """Returns the private key in PKCS#8 PEM."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def __repr__(self) -> str:
        return f"X509Svid({self.spiffe_id}, serial={self.serial}, not_after={self.not_after.isoformat()})"
