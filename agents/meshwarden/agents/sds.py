"""An Envoy's own certificate, what it trusts and its workload's secrets, as xDS secrets on its one ADS stream."""

from typing import Final

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

OWN: Final = "default"
ROOTS: Final = "ROOTCA"
GIVEN: Final = "secret/"
"""What the names of a workload's secrets begin with: none is mistaken for one of the above."""
_SECRET: Final = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a message's name
_SPIFFE: Final = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"


def own_secret(svid: X509Svid) -> Resource:
    """The secret `default`: the workload's chain and key, inline, so that the two never mismatch."""
    certificate = {
        "certificate_chain": {"inline_string": svid.chain_pem().decode()},
        "private_key": {"inline_string": svid.key_pem().decode()},
    }
    return resource(api.build(_SECRET, {"name": OWN, "tls_certificate": certificate}), OWN)


def roots_secret(bundle: Bundle) -> Resource:
    """The secret `ROOTCA`: the roots, each trusted for its own trust domain alone.

    Plain roots side by side would let one trust domain's authority forge the identities of another.
    """
    domain = {"name": bundle.trust_domain, "trust_bundle": {"inline_string": bundle.pem().decode()}}
    validator = {
        "name": "envoy.tls.cert_validator.spiffe",
        "typed_config": {"@type": api.TYPE_URL_PREFIX + _SPIFFE, "trust_domains": [domain]},
    }
    context = {"custom_validator_config": validator}
    return resource(api.build(_SECRET, {"name": ROOTS, "validation_context": context}), ROOTS)


def generic_secret(name: str, value: str) -> Resource:
    """The secret `secret/<name>`: a text that the workload's entry names, for the filters of its Envoy."""
    full = GIVEN + name
    return resource(api.build(_SECRET, {"name": full, "generic_secret": {"secret": {"inline_string": value}}}), full)
