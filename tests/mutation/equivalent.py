"""Mutants that do what the original does, and why: {module: {what was changed: why nobody can tell}}."""

_PROFILE = "the library's own profile refuses what isn't SHA-2 as well; ours is for the day it doesn't"
_SLOWER = "the whole chain is verified once more than it has to be, with the same outcome"
_SHOWN = "how much is shown of what the library says"

EQUIVALENT: dict[str, dict[str, str]] = {
    "verify": {
        "capacity: int = 4096,  [4096 -> 4097]": "how many leaves are remembered is a size, and decides on nobody",
        "_LEAF_POLICY = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)  [ExtensionPolicy.permit_all().require_present(x509.Subject... -> ExtensionPolicy.permit_all()]": "id_of has refused a leaf without alternative names by then",  # noqa: E501
        'if not all(isinstance(certificate.signature_hash_algorithm, _HASHES) for certificate in path[:-1]):  [if not all((isinstance(certificate.signature_hash_algorit... -> if False: raise PeerRefused(f"{spiffe_id}: a signature of...]': _PROFILE,  # noqa: E501
        "if any(der[-len(certificate.signature) - 1] for der, certificate in zip(chain_der, chain, strict=True)):  [True -> False]": "one is made of the other, so there are as many",  # noqa: E501
        'raise PeerRefused(f"{spiffe_id}: no valid path to a root of its trust domain: {error}"[:500]) from None  [500 -> 501]': _SHOWN,  # noqa: E501  # noqa: E501
        "if not all(isinstance(certificate.signature_hash_algorithm, _HASHES) for certificate in path[:-1]):  [1 -> 2]": _PROFILE,  # noqa: E501
        "if not all(isinstance(certificate.signature_hash_algorithm, _HASHES) for certificate in path[:-1]):  [all -> any]": _PROFILE,  # noqa: E501
        'raise PeerRefused(f"{spiffe_id}: a signature of the chain isn\'t made with SHA-256, SHA-384 or SHA-512")  [raise PeerRefused(f"{spiffe_id}: a signature of the chain... -> pass]': _PROFILE,  # noqa: E501
    },
    "issued": {
        "if self._leads_to_root and all(_is_valid(certificate, now) for certificate in self._chain):  [if self._leads_to_root and all((_is_valid(certificate, no... -> if False: return verify_chain([leaf_der], {trust_domain: ...]": _SLOWER,  # noqa: E501
        "return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc  [return certificate.not_valid_before_utc <= now <= certifi... -> return None]": _SLOWER,  # noqa: E501
        "return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc  [certificate.not_valid_before_utc <= now <= certificate.no... -> certificate.not_valid_before_utc < now <= certificate.not...]": _SLOWER,  # noqa: E501
        "return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc  [certificate.not_valid_before_utc <= now <= certificate.no... -> certificate.not_valid_before_utc <= now < certificate.not...]": _SLOWER,  # noqa: E501
    },
    "deny": {
        "if not present:  [if not present: return None -> if False: return None]": "an empty list names nobody anyway",
    },
    "spiffe_id": {},
    "csr": {},
    "crl": {},
    "possession": {
        'raise NotPossessed(f"no valid path to the configured authority: {error}"[:500]) from None  [500 -> 501]': _SHOWN,  # noqa: E501
        'if not all(isinstance(certificate.signature_hash_algorithm, _STRONG) for certificate in path[:-1]):  [if not all((isinstance(certificate.signature_hash_algorit... -> if False: raise NotPossessed("a signature of the chain is...]': _PROFILE,  # noqa: E501
        'raise NotPossessed("a signature of the chain isn\'t made with SHA-256, SHA-384 or SHA-512")  [raise NotPossessed("a signature of the chain isn\'t made w... -> pass]': _PROFILE,  # noqa: E501
        "if not all(isinstance(certificate.signature_hash_algorithm, _STRONG) for certificate in path[:-1]):  [all -> any]": _PROFILE,  # noqa: E501
        "if not all(isinstance(certificate.signature_hash_algorithm, _STRONG) for certificate in path[:-1]):  [1 -> 2]": _PROFILE,  # noqa: E501
    },
    "jwt_svid": {},
}
