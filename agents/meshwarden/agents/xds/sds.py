"""An Envoy's own certificate, what it trusts and its workload's secrets, as xDS secrets on its one ADS stream."""

import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

OWN: Final = "default"
ROOTS: Final = "ROOTCA"
CALLERS: Final = "callers"
SYSTEM: Final = "system"
# Source: the packages "ca-certificates" of Debian, Fedora, SUSE and Alpine.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
SPEAKER: Final = "speaker/"
"""What the names begin with of the certificates by which an ingress calls for tenants."""
CERTIFICATE: Final = "certificate/"
"""What the names begin with of a workload's secrets that are certificates with their keys."""
GIVEN: Final = "secret/"
"""What the names of a workload's secrets begin with: none is mistaken for one of the above."""
_PEM: Final = re.compile(r"(-----BEGIN ([A-Z0-9 ]+)-----[^-]+-----END \2-----)")
_SECRET: Final = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a message's name
_SPIFFE: Final = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"


def own_secret(svid: X509Svid, name: str = OWN) -> Resource:
    """The secret `default`, or another: a workload's chain and key, inline, so that the two never mismatch."""
    certificate = {
        "certificate_chain": {"inline_string": svid.chain_pem().decode()},
        "private_key": {"inline_string": svid.key_pem().decode()},
    }
    return resource(api.build(_SECRET, {"name": name, "tls_certificate": certificate}), name)


def speaker_secrets(svids: Mapping[str, X509Svid]) -> Iterator[Resource]:
    """The secrets `speaker/<tenant>`: by whose certificates an ingress calls, `{tenant: certificate}`."""
    return (own_secret(svid, f"{SPEAKER}{tenant}") for tenant, svid in sorted(svids.items()))


def certificate_secret(name: str, value: str) -> Resource | None:
    """The secret `certificate/<name>`: certificates and their key out of one text; None if it holds not both."""
    blocks = _PEM.findall(value)
    chain = "".join(f"{text}\n" for text, kind in blocks if kind == "CERTIFICATE")
    keys = [f"{text}\n" for text, kind in blocks if kind.endswith("PRIVATE KEY")]
    if not chain or len(keys) != 1:
        return None
    certificate = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": keys[0]}}
    full = CERTIFICATE + name
    return resource(api.build(_SECRET, {"name": full, "tls_certificate": certificate}), full)


def roots_secrets(bundle: Bundle, foreign: Mapping[str, Bundle]) -> Iterator[Resource]:
    """What to trust, each root for its own trust domain alone, never in one pool.

    `ROOTCA` has our own trust domain's roots, `ROOTCA/<trust domain>` those of another one, `callers` all of them. Who
    calls a service trusts its trust domain alone: Envoy takes the trust domain from the first URI of a certificate and
    is content if any of them is the one that it wants, so that another authority could sign for two at once.
    """
    yield _roots(ROOTS, (bundle,))
    for trust_domain, other in sorted(foreign.items()):
        yield _roots(f"{ROOTS}/{trust_domain}", (other,))
    yield _roots(CALLERS, (bundle, *(other for _, other in sorted(foreign.items()))))


def _roots(name: str, bundles: Iterable[Bundle]) -> Resource:
    domains: list[dict[str, Any]] = [
        {"name": bundle.trust_domain, "trust_bundle": {"inline_string": bundle.pem().decode()}} for bundle in bundles
    ]
    validator = {
        "name": "envoy.tls.cert_validator.spiffe",
        "typed_config": {"@type": api.TYPE_URL_PREFIX + _SPIFFE, "trust_domains": domains},
    }
    context = {"custom_validator_config": validator}
    return resource(api.build(_SECRET, {"name": name, "validation_context": context}), name)


def system_secrets() -> Iterator[Resource]:
    """The secret `system`: the authorities that this node's system trusts, for what lies outside of the mesh.

    Without any there is no secret, and whoever needs it connects to nobody: without authorities it would trust all.
    """
    own = ssl.get_default_verify_paths().cafile
    path = next((path for path in (own, *_BUNDLES) if path and Path(path).is_file()), None)
    if path is not None:
        context = {"trusted_ca": {"filename": path}}
        yield resource(api.build(_SECRET, {"name": SYSTEM, "validation_context": context}), SYSTEM)


def generic_secret(name: str, value: str) -> Resource:
    """The secret `secret/<name>`: a text that the workload's entry names, for the filters of its Envoy."""
    full = GIVEN + name
    return resource(api.build(_SECRET, {"name": full, "generic_secret": {"secret": {"inline_string": value}}}), full)
