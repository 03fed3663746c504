"""What is kept of a PKI engine for a start while that is away: its issuers that count, and our issuing key.

roots      the issuers with their names and chains, as the engine told them last; all of it is public
issuing    the issuing key with its chain; only where a passphrase is needed to read it
"""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from meshwarden.certs.authority.kept import KeptFiles, KeptUnusable
from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.authority.vault_slots import Kept, read_issuer, read_slots
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.issue import IssuerKey

ROOTS: Final = "roots"
ISSUING: Final = "issuing"
_FORMAT: Final = 1
T = TypeVar("T")


class VaultMemory:
    """Keeps it in files. Calls block."""

    def __init__(self, files: KeptFiles, mount: str) -> None:
        """Keeps what is of the engine at `mount`."""
        self._files, self._mount = files, mount

    def roots(self) -> Kept | None:
        """Returns the roots as the engine had them; None if none were kept.

        Raises:
            KeptUnusable: they aren't as they were kept.
        """
        return self._read(ROOTS, self._roots)

    def keep_roots(self, kept: Kept) -> None:
        """Keeps roots in place of those before.

        Raises:
            OSError: the disk refuses.
        """
        issuers = [
            {"id": one.id, "name": one.name, "default": one.is_default, "chain": _encoded(one.chain)}
            for slot in kept.slots
            for one in slot.issuers
        ]
        self._write(ROOTS, {"issuers": issuers, "order": [state.fingerprint for state in kept.states]})

    def issuer(self) -> IssuerKey | None:
        """Returns the issuing key; None if none was kept, or none may be.

        Raises:
            KeptUnusable: it isn't as it was kept.
        """
        return self._read(ISSUING, _issuer) if self._files.is_secret else None

    def keep_issuer(self, issuer: IssuerKey) -> None:
        """Keeps the issuing key in place of the one before; where none may be kept, forgets that.

        Raises:
            OSError: the disk refuses.
        """
        if not self._files.is_secret:
            self.drop_issuer()
            return
        key = issuer.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self._write(ISSUING, {"key": base64.b64encode(key).decode(), "chain": _encoded(issuer.chain)})

    def drop_issuer(self) -> None:
        """Forgets the issuing key.

        Raises:
            OSError: the disk refuses.
        """
        self._files.drop(ISSUING)

    def _write(self, name: str, words: dict[str, Any]) -> None:
        self._files.write(name, json.dumps({"v": _FORMAT, "mount": self._mount, **words}).encode())

    def _read(self, name: str, parse: Callable[[dict[str, Any]], T]) -> T | None:
        content = self._files.read(name)
        if content is None:
            return None
        try:
            words = json.loads(content)
            if words["v"] != _FORMAT or words["mount"] != self._mount:
                raise KeptUnusable(f"the {name} that were kept are of the engine at {words['mount']!r}")
            return parse(words)
        except KeptUnusable:
            raise
        except (KeyError, AttributeError, RecursionError, AuthorityError, *UNREADABLE):
            raise KeptUnusable(f"the {name} that were kept can't be read") from None

    @staticmethod
    def _roots(words: dict[str, Any]) -> Kept:
        found = []
        for one in words["issuers"]:
            chain = _decoded(one["chain"])
            issuer = read_issuer(str(one["id"]), str(one["name"]), one["default"] is True, chain)
            if issuer is None or not _is_whole(chain):
                raise ValueError("no issuer")
            found.append(issuer)
        kept, call = read_slots(found, [str(fingerprint) for fingerprint in words["order"]])
        if call is not None:
            raise ValueError("the engine would have been told something first")
        return kept


def _issuer(words: dict[str, Any]) -> IssuerKey:
    key = load_der_private_key(base64.b64decode(words["key"], validate=True), None)
    chain = _decoded(words["chain"])
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != chain[0].public_key():
        raise ValueError("not the key of the certificate")
    if not all(is_authority(certificate) for certificate in chain) or not _is_whole(chain):
        raise ValueError("no issuer")
    return IssuerKey(key, chain)


def _encoded(chain: Sequence[x509.Certificate]) -> list[str]:
    return [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain]


def _decoded(chain: Sequence[str]) -> tuple[x509.Certificate, ...]:
    """Returns certificates; one at least.

    Raises:
        ValueError: they are none.
    """
    found = tuple(x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in chain)
    if not found:
        raise ValueError("no certificate")
    return found


def _is_whole(chain: Sequence[x509.Certificate]) -> bool:
    """Whether each is signed by the next, and the last by itself."""
    try:
        for certificate, parent in zip(chain, [*chain[1:], chain[-1]], strict=True):
            certificate.verify_directly_issued_by(parent)
    except (TypeError, InvalidSignature, *UNREADABLE):
        return False
    return True
