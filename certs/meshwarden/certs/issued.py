"""Does what an issuer has just signed lead to its root?"""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.verify import VerifiedPeer, verify_chain


class IssuedVerifier:
    """Verifies leaves of one issuer, who must lead to its own root.

    That the issuer does is verified with its first leaf, and stays true for as long as all of its chain is valid. From
    then on leaves are held, by the same rules, against the issuer alone, whose own certificate is looked at each time.
    Where an authority above it constrains names, which is about the leaf, all leaves are held against the whole chain.
    """

    def __init__(self, chain: Sequence[x509.Certificate]) -> None:
        """Takes the issuer's chain: its own certificate first, its root last."""
        self._chain = chain
        self._above = [certificate.public_bytes(Encoding.DER) for certificate in chain[:-1]]
        # Of which trust domain they are says who asks.
        self._issuer, self._root = Bundle("", (chain[0],)), Bundle("", (chain[-1],))
        self._may_stop_at_issuer = not any(map(_constrains_names, chain[1:]))
        self._leads_to_root = False

    def verify(self, leaf_der: bytes, trust_domain: str, now: datetime) -> VerifiedPeer:
        """Returns whose a leaf of this trust domain is.

        Raises:
            PeerRefused: see `verify_chain`.
        """
        if self._leads_to_root and all(_is_valid(certificate, now) for certificate in self._chain):
            return verify_chain([leaf_der], {trust_domain: self._issuer}, now)
        peer = verify_chain([leaf_der, *self._above], {trust_domain: self._root}, now)
        self._leads_to_root = self._may_stop_at_issuer
        return peer


def _constrains_names(certificate: x509.Certificate) -> bool:
    return any(isinstance(extension.value, x509.NameConstraints) for extension in certificate.extensions)


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
