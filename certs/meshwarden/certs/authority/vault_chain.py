"""Reads what a PKI engine answers."""

from collections.abc import Mapping

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.issue import name_text


def read_chain(data: Mapping[str, object], who: str) -> tuple[x509.Certificate, ...]:
    """Returns the certificate of an answer and what leads from it to its root, which is last.

    Args:
        data: the answer's data: `certificate` and `ca_chain` or `issuing_ca`, in PEM.
        who: has answered, for errors.

    Raises:
        AuthorityError: it holds no certificates, or its chain doesn't end in a root.
    """
    above = data.get("ca_chain") or [data.get("issuing_ca")]
    try:
        certificate = x509.load_pem_x509_certificate(str(data["certificate"]).encode())
        issuers = [x509.load_pem_x509_certificate(str(pem).encode()) for pem in above]  # type: ignore[attr-defined]
    except (KeyError, *UNREADABLE):
        raise AuthorityError(f"{who}: its answer holds no certificates") from None
    chain = [certificate]
    while chain[-1].issuer != chain[-1].subject:
        parent = next((issuer for issuer in issuers if _has_signed(issuer, chain[-1])), None)
        if parent is None or parent in chain:
            raise AuthorityError(
                f"{who}: the chain ends at {name_text(chain[-1].issuer)!r}, which isn't a root; "
                "import the root's certificate into the PKI engine"
            )
        chain.append(parent)
    return tuple(chain)


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """By its key: two roots may have one name."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (TypeError, InvalidSignature, *UNREADABLE):
        return False
    return True
