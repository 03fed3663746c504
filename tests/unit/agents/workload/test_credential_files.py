"""The bundle map that C-core reads: each trust domain by itself, and nothing that would have all of it refused."""

import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from meshwarden.agents.workload.credential_files import bundle_map
from meshwarden.certs.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "certs"))
from certs_build import authority


def test_each_trust_domain_has_its_own_roots() -> None:
    a, b = (Bundle.of(name, [authority(name)().certificate]) for name in ("a.test", "b.test"))
    domains = json.loads(bundle_map((a, b)))["trust_domains"]
    assert {name: len(domain["keys"]) for name, domain in domains.items()} == {"a.test": 1, "b.test": 1}
    assert domains["a.test"]["keys"][0]["x5c"] != domains["b.test"]["keys"][0]["x5c"]


def test_a_root_whose_key_nobody_takes_is_left_out_alone() -> None:
    good = authority("good")().certificate
    odd = authority("odd", key=ec.generate_private_key(ec.SECP224R1()))().certificate
    other = authority("other", key=ed25519.Ed25519PrivateKey.generate(), hash=None)().certificate
    domains = json.loads(bundle_map((Bundle.of("a.test", [odd, good]), Bundle.of("b.test", [other]))))["trust_domains"]
    assert {name: len(domain["keys"]) for name, domain in domains.items()} == {"a.test": 1}
