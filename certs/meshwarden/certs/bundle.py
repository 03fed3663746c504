"""What a trust domain's certificates must lead to: its roots."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import Store

from meshwarden.certs.error import UNREADABLE, CertsError
from meshwarden.certs.spiffe_id import InvalidSpiffeId, check_trust_domain
from meshwarden.v1 import node_service_pb2

MAX_ROOTS = 64
MAX_ROOT_SIZE_BYTES = 16 * 1024


class InvalidBundle(CertsError):
    """A set of roots can't be used."""


@dataclass(frozen=True)
class Bundle:
    """The roots of one trust domain. It is compared by content, and replaced as a whole when it changes."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...]
    # Grows with each change.
    revision: int = 0

    @cached_property
    def ders(self) -> tuple[bytes, ...]:
        """The roots in DER."""
        return tuple(root.public_bytes(Encoding.DER) for root in self.roots)

    @cached_property
    def store(self) -> Store:
        """The roots as what paths must lead to; it remembers their keys once it has read them."""
        return Store(list(self.roots))

    def pem(self) -> bytes:
        """Returns the roots in PEM, one after the other."""
        return b"".join(root.public_bytes(Encoding.PEM) for root in self.roots)

    def issuer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        """Returns the root that has signed a certificate; None if none of these has."""
        for root in self.roots:
            try:
                certificate.verify_directly_issued_by(root)
            except (TypeError, InvalidSignature, *UNREADABLE):
                continue
            return root
        return None

    def to_proto(self) -> node_service_pb2.Bundle:
        """Returns the message that carries this bundle."""
        return node_service_pb2.Bundle(trust_domain=self.trust_domain, roots=self.ders, revision=self.revision)

    @classmethod
    def from_proto(cls, message: node_service_pb2.Bundle) -> "Bundle":
        """Reads a bundle.

        Raises:
            InvalidBundle: it is empty, too large, or holds what is no certificate authority.
        """
        roots = message.roots
        if len(roots) > MAX_ROOTS or any(len(root) > MAX_ROOT_SIZE_BYTES for root in roots):
            raise InvalidBundle(f"bundle of {message.trust_domain[:255]!r}: more than {MAX_ROOTS} roots, or too large")
        try:
            certificates = [x509.load_der_x509_certificate(root) for root in roots]
        except UNREADABLE:
            raise InvalidBundle(f"bundle of {message.trust_domain[:255]!r}: not DER certificates") from None
        return cls.of(message.trust_domain, certificates, message.revision)

    @classmethod
    def parse_pem(cls, trust_domain: str, pem: bytes, revision: int = 0) -> "Bundle":
        """Reads a bundle from PEM.

        Raises:
            InvalidBundle: it is empty, too large, or holds what is no certificate authority.
        """
        if len(pem) > MAX_ROOTS * MAX_ROOT_SIZE_BYTES:
            raise InvalidBundle(f"bundle of {trust_domain[:255]!r}: too large")
        try:
            certificates = x509.load_pem_x509_certificates(pem)
        except UNREADABLE:
            raise InvalidBundle(f"bundle of {trust_domain[:255]!r}: no PEM certificates in it") from None
        return cls.of(trust_domain, certificates, revision)

    @classmethod
    def of(cls, trust_domain: str, roots: Sequence[x509.Certificate], revision: int = 0) -> "Bundle":
        """Checks the roots and returns their bundle, each root once.

        Raises:
            InvalidBundle: there is none, too many, or one that is no certificate authority.
        """
        try:
            check_trust_domain(trust_domain)
        except InvalidSpiffeId as error:
            raise InvalidBundle(f"bundle: {error}") from None
        if not 0 < len(roots) <= MAX_ROOTS:
            raise InvalidBundle(f"bundle of {trust_domain!r}: {len(roots)} roots; give 1 to {MAX_ROOTS}")
        if not all(is_authority(root) for root in roots):
            raise InvalidBundle(f"bundle of {trust_domain!r}: a certificate in it is no certificate authority")
        return cls(trust_domain, tuple(dict.fromkeys(roots)), revision)


def is_authority(certificate: x509.Certificate) -> bool:
    """Says whether a certificate may sign others: cA is true, and a key usage, if there, has keyCertSign."""
    try:
        extensions = certificate.extensions
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True
