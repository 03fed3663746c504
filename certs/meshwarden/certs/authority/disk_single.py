"""The root on disk as it was before there could be several: read once, to be kept in the present form.

<directory>/root.crt   the root certificate, PEM
<directory>/root.key   its key, PKCS#8 PEM, encrypted
<directory>/root.kdf   how the passphrase becomes the key's password: scrypt's salt and cost, JSON
"""

import json
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from meshwarden.certs.authority.port import AuthorityError, AuthorityLocked, Secret
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.csr import PrivateKey
from meshwarden.certs.error import UNREADABLE

NAMES: Final = ("root.crt", "root.key", "root.kdf")
MAX_SCRYPT_N: Final = 2**20


def is_here(directory: Path) -> bool:
    """Whether a directory has a root of that form, or what is left of one."""
    return any((directory / name).exists() for name in NAMES)


def load(
    directory: Path, contents: tuple[bytes, ...], passphrase: Secret, trust_domain: str
) -> tuple[x509.Certificate, PrivateKey]:
    """Reads the root and its key.

    Args:
        directory: for messages.
        contents: of the files in `NAMES`.
        passphrase: what the key is encrypted under.
        trust_domain: whose root it must be.

    Raises:
        AuthorityLocked: the passphrase is wrong.
        AuthorityError: a file is damaged, they don't belong together, or the root is another trust domain's.
    """
    certificate_pem, key_pem, kdf = contents
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        words = json.loads(kdf)
        salt, cost = bytes.fromhex(words["salt"]), int(words["n"])
        if words["kdf"] != "scrypt" or not 2 <= cost <= MAX_SCRYPT_N or cost & (cost - 1):
            raise ValueError("unknown derivation")
    except (KeyError, RecursionError, *UNREADABLE):
        raise AuthorityError(f"{directory}: root.crt or root.kdf is damaged; bring it back from a backup") from None
    password = Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.get_secret_value().encode()).hex()
    try:
        key = load_pem_private_key(key_pem, password.encode())
    except UNREADABLE:
        raise AuthorityLocked(
            f"{directory / 'root.key'}: the passphrase doesn't open it; see `passphrase` under [authority]"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or not is_authority(certificate):
        raise AuthorityError(f"{directory}: holds no root that can sign")
    if key.public_key() != certificate.public_key():
        raise AuthorityError(f"{directory}: root.key isn't the key of root.crt; bring both back from one backup")
    owner = _trust_domain_of(certificate)
    if owner != trust_domain:
        raise AuthorityError(f"{directory}: is the root of {owner!r}, not of trust_domain = {trust_domain!r}")
    return certificate, key


def _trust_domain_of(certificate: x509.Certificate) -> str | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0].removeprefix("spiffe://") if len(uris) == 1 else None


def forget(directory: Path) -> None:
    """Removes the files; the key last, so that what is left can be told from damage."""
    for name in ("root.crt", "root.kdf", "root.key"):
        (directory / name).unlink(missing_ok=True)
