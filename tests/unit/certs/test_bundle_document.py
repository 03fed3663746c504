"""A bundle document: written and read, and what is ignored or refused of others'."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from certs_build import Plan
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs import jose
from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.certs.bundle_document import MAX_SIZE_BYTES, TrustBundle, format_document, parse_document
from meshwarden.certs.issue import self_signed_root
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.svid import new_key
from meshwarden.v1 import node_service_pb2

NOW = datetime(2026, 11, 26, 10, tzinfo=UTC)
ROOT = self_signed_root("a.test", new_key(), NOW)
RSA_KEY = rsa.generate_private_key(65537, 2048).public_key()
KEYS = JwtBundle.of(
    "a.test",
    [("ec", new_key().public_key()), ("e5", ec.generate_private_key(ec.SECP521R1()).public_key()), ("rsa", RSA_KEY)],
)
WHOLE = TrustBundle("a.test", Bundle.of("a.test", [ROOT], 7), KEYS, 7, timedelta(minutes=5))
X5C = base64.b64encode(ROOT.public_bytes(Encoding.DER)).decode()


def test_what_is_written_is_read() -> None:
    data = format_document(WHOLE)
    assert parse_document("a.test", data) == WHOLE
    document = json.loads(data)
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (7, 300)
    assert [key["use"] for key in document["keys"]] == ["x509-svid", "jwt-svid", "jwt-svid", "jwt-svid"]
    assert "kid" not in document["keys"][0]  # X509-SVID §6.1


def test_another_library_reads_it() -> None:
    from spiffe.bundle.jwt_bundle.jwt_bundle import JwtBundle as TheirJwtBundle

    from spiffe import TrustDomain

    theirs = TheirJwtBundle.parse(TrustDomain("a.test"), KEYS.jwks())
    assert set(theirs.jwt_authorities) == {"ec", "e5", "rsa"}


def test_it_goes_over_the_wire() -> None:
    assert JwtBundle.from_proto("a.test", KEYS.to_proto()) == KEYS
    for message in (b"", b"x", ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()):
        with pytest.raises(InvalidBundle):
            JwtBundle.from_proto("a.test", [node_service_pb2.JwtKey(kid="k", public_key=message)])


def document(*keys: Any, **more: Any) -> bytes:
    return json.dumps({"keys": list(keys), **more}).encode()


GOOD = {"use": "jwt-svid", "kid": "k", **jose.jwk(new_key().public_key())}


@pytest.mark.parametrize(
    ("data", "roots", "keys"),
    [
        (document(), 0, 0),
        (document({}), 0, 0),
        (document({**GOOD, "use": "JWT-SVID"}), 0, 0),
        (document({**GOOD, "use": "sig"}), 0, 0),
        (document({**GOOD, "use": ["jwt-svid"]}), 0, 0),
        (document({**GOOD, "use": "wit-svid"}), 0, 0),
        (document({**GOOD, "kty": "OKP"}), 0, 0),
        (document({**GOOD, "crv": "secp256k1"}), 0, 0),
        (document({**GOOD, "crv": {}}), 0, 0),
        (document({"use": "x509-svid", "kty": "EC"}), 0, 0),
        (document({"use": "x509-svid", "x5c": []}), 0, 0),
        (document({"use": "x509-svid", "x5c": [X5C, "rubbish"]}), 1, 0),
        (document({"use": "x509-svid", "x5c": [X5C]}, {"use": "x509-svid", "x5c": [X5C]}), 1, 0),
        (document(GOOD, spiffe_sequence=None, whatever=1), 0, 1),
    ],
)
def test_what_is_ignored(data: bytes, roots: int, keys: int) -> None:
    found = parse_document("a.test", data)
    assert (len(found.x509.roots) if found.x509 else 0, len(found.jwt.keys)) == (roots, keys)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys":{}}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":[1]}',
        b"\xff",
        b'{"keys":[NaN]}',
        b"[" * 100_000,
        b" " * (MAX_SIZE_BYTES + 1),
        document(*[{}] * 257),
        document({"use": "x509-svid", "x5c": [1]}),
        document({"use": "x509-svid", "x5c": ["!"]}),
        document({"use": "x509-svid", "x5c": [X5C[:-8]]}),
        document({"use": "x509-svid", "x5c": [X5C + "\n"]}),
        document({"use": "x509-svid", "x5c": ["A" * 30_000]}),
        document({**GOOD, "kid": None}),
        document({**GOOD, "kid": 1}),
        document({**GOOD, "kid": ""}),
        document({**GOOD, "kid": "x" * 256}),
        document({**GOOD, "kid": "k\n"}),
        document(GOOD, GOOD),
        document({**GOOD, "x": GOOD["y"]}),
        document({**GOOD, "x": GOOD["x"] + "="}),
        document({**GOOD, "x": ""}),
        document({**GOOD, "x": "A" * 43}),
        document({**GOOD, "x": "AA"}),
        document({**GOOD, "x": 5}),
        document({"use": "jwt-svid", "kid": "k", "kty": "RSA"}),
        document({"use": "jwt-svid", "kid": "k", "kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        document({"use": "jwt-svid", "kid": "k", **jose.jwk(RSA_KEY), "e": "AQ"}),
        document({"use": "jwt-svid", "kid": "k", **jose.jwk(RSA_KEY), "e": "Ag"}),
        document({"use": "jwt-svid", "kid": "k", **jose.jwk(RSA_KEY), "e": jose.jwk(RSA_KEY)["n"]}),
        document(*[{**GOOD, "kid": f"k{number}"} for number in range(65)]),
        document(spiffe_sequence="1"),
        document(spiffe_sequence=True),
        document(spiffe_sequence=-1),
        document(spiffe_sequence=2**63),
        document(spiffe_refresh_hint=1.5),
        document(spiffe_refresh_hint=-1),
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBundle):
        parse_document("a.test", data)


@pytest.mark.parametrize("trust_domain", ["", "A.test", "a.test\n", "a.test:1", "a/b", "a%2e", "x" * 256])
def test_a_name_that_is_none(trust_domain: str) -> None:
    with pytest.raises(InvalidBundle):
        parse_document(trust_domain, format_document(WHOLE))


def test_a_leaf_is_no_root() -> None:
    leaf = base64.b64encode(Plan()().der).decode()
    with pytest.raises(InvalidBundle, match="no certificate authority"):
        parse_document("a.test", document({"use": "x509-svid", "x5c": [leaf]}))


def test_a_hint_is_bounded() -> None:
    assert parse_document("a.test", document(spiffe_refresh_hint=2**53)).refresh == timedelta(days=7)
    assert parse_document("a.test", document(spiffe_refresh_hint=0)).refresh is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(X5C),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["use", "kty", "crv", "x", "y", "n", "e", "x5c", "kid"]), inner, max_size=6)
    ),
    max_leaves=12,
)
ELEMENT = st.fixed_dictionaries(
    {"use": st.sampled_from(["x509-svid", "jwt-svid", "x"]), "kty": st.sampled_from(["EC", "RSA", "OKP"])},
    optional=dict.fromkeys(("crv", "x", "y", "n", "e", "x5c", "kid"), JSON),
)


@given(st.binary(max_size=300) | st.lists(ELEMENT | JSON, max_size=4).map(lambda keys: document(*keys)))
def test_any_input_is_read_or_refused(data: bytes) -> None:
    try:
        found = parse_document("a.test", data)
    except InvalidBundle:
        return
    assert parse_document("a.test", format_document(found)) == found
