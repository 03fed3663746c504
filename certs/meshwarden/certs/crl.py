"""X.509 certificate revocation lists, for whoever checks our certificates and isn't of the mesh."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.issue import BACKDATING, IssuerKey, issuer_identifier

CRL_LIFE: Final = timedelta(minutes=10)


def sign_crl(revoked: Mapping[int, datetime], issuer: IssuerKey, number: int, now: datetime) -> bytes:
    """Signs a list and returns it in DER.

    Args:
        revoked: {serial number: when it was revoked}; only those of this issuer's certificates mean anything in it.
        issuer: who has signed the certificates.
        number: grows with each list.
        now: the present, aware.

    Source:
        RFC 5280 §5.1 and §5.2.1 (authority key identifier), §5.2.3 (CRL number): both are demanded.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - BACKDATING)
        .next_update(min(now + CRL_LIFE, issuer.not_after))
        .add_extension(issuer_identifier(issuer.certificate), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, time in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(time)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)
