"""Attests by a certificate that the machine has already, of an authority that is configured, and proof of its key."""

import os
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.possession import NotPossessed, parse_chain, verify_issued, verify_possession
from meshwarden.controlplane.identity.attestor import Attempt, Attested, Attestor, Challenge
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.node_name import NameTemplate, NoName

FIELDS = ("common_name", "dns_label", "serial", "fingerprint")
# Of a SHA-256 as much as leaves room for a prefix in a node's name: 160 bits.
FINGERPRINT_DIGITS = 40
CHALLENGE_BYTES = 32


class PossessionAttestor(Attestor):
    """Knows the node by its certificate."""

    def __init__(self, roots: Sequence[x509.Certificate], template: NameTemplate, tenants: Sequence[str] = ()) -> None:
        """Says whom to believe.

        Args:
            roots: the authorities of the machines' certificates.
            template: makes the node's name, of `FIELDS`.
            tenants: whose entries such nodes may serve; empty for any tenant's.
        """
        self._roots, self._template, self._tenants = tuple(roots), template, tuple(tenants)

    async def attest(self, attempt: Attempt) -> Attested | Challenge:
        """Challenges first; then sees the answer, and whose certificate it is."""
        try:
            chain = parse_chain(attempt.request.x509pop.chain)
            if attempt.answered is None:
                challenge = os.urandom(CHALLENGE_BYTES)
                return Challenge(challenge, challenge)
            request = attempt.request
            verify_possession(chain[0], attempt.answered, request.csr, request.answer.answer)
            verify_issued(chain, self._roots, attempt.now)
            values = _values(chain[0])
            return Attested(self._template.name(values), self._tenants, {"certificate": values["fingerprint"]})
        except NotPossessed as error:
            raise Denied(f"x509pop: {error}") from None
        except NoName as error:
            raise Denied(f"x509pop: the certificate names no node: {error}") from None


def _values(leaf: x509.Certificate) -> dict[str, str]:
    """What a certificate says, by field; one that is ambiguous is left out."""
    values = {
        "serial": f"{leaf.serial_number:x}",
        "fingerprint": leaf.fingerprint(hashes.SHA256()).hex()[:FINGERPRINT_DIGITS],
    }
    try:
        names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if len(names) == 1 and isinstance(names[0].value, str):
            values["common_name"] = names[0].value
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = alternative.get_values_for_type(x509.DNSName)
        if len(dns) == 1:
            values["dns_label"] = dns[0].partition(".")[0]
    except (x509.ExtensionNotFound, *UNREADABLE):
        pass
    return values
