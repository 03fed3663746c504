"""Certificates as the web's PKI would give them, for what serves on loopback."""

import ipaddress
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import PrivateKey
from meshwarden.certs.svid import new_key


def web_pair(directory: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key: their files."""
    key, now = new_key(), utc_now()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the web")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    made = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    (directory / "web.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (directory / "web.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return directory / "web.pem", directory / "web.key"


def signed(directory: Path, name: str, *, organization: str = "", key: PrivateKey | None = None) -> tuple[str, Path]:
    """An authority's certificate, in PEM, and the file of a certificate that it has signed for a name, with its key.

    The key alone is in a file beside it, `<name>.key`.
    """
    now, keys = utc_now(), [new_key(), key or new_key()]
    more = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization)] if organization else []

    def build(subject: str, key: PrivateKey) -> x509.CertificateBuilder:
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text), *(more if text == name else [])])
            for text in ("ca", subject)
        ]
        number = x509.random_serial_number()
        return x509.CertificateBuilder(*names, key.public_key(), number, now - timedelta(hours=1), now + timedelta(1))

    ca = build("ca", keys[0]).add_extension(x509.BasicConstraints(True, None), True).sign(keys[0], hashes.SHA256())
    names_of = x509.SubjectAlternativeName([x509.DNSName(name)])
    leaf = build(name, keys[1]).add_extension(names_of, False).sign(keys[0], hashes.SHA256())
    path, own = directory / f"{name}.pem", keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(leaf.public_bytes(Encoding.PEM) + own)
    path.with_name(f"{name}.key").write_bytes(own)
    return ca.public_bytes(Encoding.PEM).decode(), path
