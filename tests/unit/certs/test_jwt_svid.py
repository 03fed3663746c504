"""JWT-SVIDs: what is taken, and every way of being refused."""

import json
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs import jose, jwt_svid
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import (
    InvalidJwtSvid,
    JwtTemplate,
    check_audience,
    sign_jwt_svid,
    token_id,
    validate,
)
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key

NOW = datetime(2026, 11, 26, 10, tzinfo=UTC)
WEB = SpiffeId.workload("a.test", "acme", "web")
KEY, OTHER = new_key(), new_key()
BUNDLES = {
    "a.test": JwtBundle.of("a.test", [("k", KEY.public_key())]),
    "b.test": JwtBundle.of("b.test", [("k", OTHER.public_key())]),
}
HEADER = {"alg": "ES256", "kid": "k", "typ": "JWT"}
CLAIMS = {"sub": str(WEB), "aud": ["orders"], "exp": int(NOW.timestamp()) + 300, "iat": int(NOW.timestamp())}


def text(said: Any) -> str:
    return jose.encode(said if isinstance(said, bytes) else json.dumps(said).encode())


def token(header: Any = HEADER, claims: Any = CLAIMS, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    content = f"{text(header)}.{text(claims)}"
    return f"{content}.{jose.encode(jose.sign(key, content.encode()))}"


def without(said: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != name}


def test_what_is_signed_is_proved_and_says_what_was_asked_for() -> None:
    made = sign_jwt_svid(JwtTemplate(WEB, ("orders", "x"), issuer="https://id.a.test"), KEY, "k", NOW)
    proved = validate(made.token, "x", BUNDLES, NOW + timedelta(seconds=299))
    assert (proved.spiffe_id, proved.audience) == (WEB, ("orders", "x"))
    assert proved.expire_time == NOW + timedelta(minutes=5)
    assert proved.claims["iss"] == "https://id.a.test"
    assert made.token not in repr(made)
    assert "https://id.a.test" not in repr(made)


def test_another_library_takes_what_we_sign() -> None:
    made = sign_jwt_svid(JwtTemplate(WEB, ("orders",), timedelta(hours=1)), KEY, "k", datetime.now(UTC))  # noqa: TID251
    claims = jwt.decode(made.token, KEY.public_key(), algorithms=["ES256"], audience="orders")
    assert claims["sub"] == str(WEB)
    assert jwt.get_unverified_header(made.token) == HEADER


@pytest.mark.parametrize("algorithm", sorted(jose.ALGORITHMS))
def test_all_algorithms_of_the_standard_are_taken(algorithm: str) -> None:
    curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    key: Any = (
        ec.generate_private_key(curves[algorithm]) if algorithm in curves else rsa.generate_private_key(65537, 2048)
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signed = jwt.encode(CLAIMS, pem, algorithm, {"kid": "k"})
    bundles = {"a.test": JwtBundle.of("a.test", [("k", key.public_key())])}
    assert validate(signed, "orders", bundles, NOW).spiffe_id == WEB
    for other in jose.ALGORITHMS - {algorithm}:
        _, claims, signature = signed.split(".")
        forged = f"{text({'alg': other, 'kid': 'k'})}.{claims}.{signature}"
        with pytest.raises(InvalidJwtSvid, match="not signed by a key"):
            validate(forged, "orders", bundles, NOW)


def test_a_public_key_is_no_password() -> None:
    """The classic: HS256 with the public key as the secret."""
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    import hashlib
    import hmac

    content = f"{text({'alg': 'HS256', 'kid': 'k'})}.{text(CLAIMS)}"
    forged = f"{content}.{jose.encode(hmac.digest(public, content.encode(), hashlib.sha256))}"
    with pytest.raises(InvalidJwtSvid, match="alg 'HS256'"):
        validate(forged, "orders", BUNDLES, NOW)


START = int(NOW.timestamp())
DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (token(HEADER | {"alg": "none"}), "alg"),
        (token(HEADER | {"alg": "None"}), "alg"),
        (token(HEADER | {"alg": "es256"}), "alg"),
        (token(HEADER | {"alg": "HS256"}), "alg"),
        (token(HEADER | {"alg": "EdDSA"}), "alg"),
        (token(HEADER | {"alg": ["ES256"]}), "alg"),
        (token(HEADER | {"alg": {"a": 1}}), "alg"),
        (token(without(HEADER, "alg")), "alg"),
        (token(HEADER | {"typ": "JWE"}), "typ"),
        (token(HEADER | {"typ": ["JWT"]}), "typ"),
        (token(HEADER | {"typ": None}), "typ"),
        (token(without(HEADER, "kid")), "by which key"),
        (token(HEADER | {"kid": 1}), "by which key"),
        (token(HEADER | {"kid": ""}), "by which key"),
        (token(HEADER | {"kid": "k\n"}), "by which key"),
        (token(HEADER | {"kid": "other"}), "not signed by a key"),
        (token(HEADER | {"crit": ["exp"]}), "a header that no"),
        (token(HEADER | {"b64": False}), "a header that no"),
        (token(HEADER | {"jku": "https://evil.test"}), "a header that no"),
        (token(HEADER | {"jwk": jose.jwk(OTHER.public_key())}), "a header that no"),
        (token(HEADER | {"x5c": []}), "a header that no"),
        (token(claims=without(CLAIMS, "sub")), "no sub"),
        (token(claims=CLAIMS | {"sub": 1}), "no sub"),
        (token(claims=CLAIMS | {"sub": "acme/web"}), "sub"),
        (token(claims=CLAIMS | {"sub": "spiffe://a.test"}), "sub"),
        (token(claims=CLAIMS | {"sub": str(WEB) + "\n"}), "sub"),
        (token(claims=CLAIMS | {"sub": "spiffe://A.test/x"}), "sub"),
        (token(claims=CLAIMS | {"sub": "spiffe://c.test/x"}), "isn't trusted"),
        (token(claims=CLAIMS | {"sub": "spiffe://b.test/x"}), "not signed by a key"),
        (token(claims=without(CLAIMS, "aud")), "no aud"),
        (token(claims=CLAIMS | {"aud": []}), "no aud"),
        (token(claims=CLAIMS | {"aud": ""}), "no aud"),
        (token(claims=CLAIMS | {"aud": ["orders", 1]}), "no aud"),
        (token(claims=CLAIMS | {"aud": {"orders": 1}}), "no aud"),
        (token(claims=CLAIMS | {"aud": "order"}), "isn't for"),
        (token(claims=CLAIMS | {"aud": ["Orders", "orders "]}), "isn't for"),
        (token(claims=without(CLAIMS, "exp")), "never ends"),
        (token(claims=CLAIMS | {"exp": START}), "has ended"),
        (token(claims=CLAIMS | {"exp": START - 1}), "has ended"),
        (token(claims=CLAIMS | {"exp": -1}), "exp is no number"),
        (token(claims=CLAIMS | {"exp": True}), "exp is no number"),
        (token(claims=CLAIMS | {"exp": str(START + 300)}), "exp is no number"),
        (token(claims=CLAIMS | {"exp": None}), "exp is no number"),
        (token(claims=CLAIMS | {"exp": 1e300}), "exp is no number"),
        (token(claims=CLAIMS | {"exp": 10**400}), "exp is no number"),
        (token(claims=CLAIMS | {"exp": START + 86_401}), "more than"),
        (token(claims=CLAIMS | {"nbf": START + 1}), "isn't valid yet"),
        (token(claims=CLAIMS | {"nbf": "now"}), "nbf is no number"),
        (token(claims=CLAIMS | {"iat": "now"}), "iat is no number"),
        (token(claims=CLAIMS | {"iat": 2**53}), "iat is no number"),
        (token(claims=json.dumps(CLAIMS).replace(str(CLAIMS["exp"]), "NaN").encode()), "JSON"),
        (token(claims=json.dumps(CLAIMS).replace(str(CLAIMS["exp"]), "1e999").encode()), "JSON"),
        (token(claims=json.dumps(CLAIMS).replace("{", '{"sub":"spiffe://a.test/x",', 1).encode()), "JSON"),
        (token(header=b'{"alg":"none","alg":"ES256","kid":"k"}'), "JSON"),
        (token(claims=b'{"a":"\xff"}'), "JSON"),
        (token(claims=DEEP[:5000]), "JSON"),
        (token(claims=b"[]"), "not a JSON object"),
        (token(claims=b""), "compact"),
        (token(key=OTHER), "not signed by a key"),
        (token() + "\n", "base64url"),
        (" " + token(), "base64url"),
        (token() + "=", "base64url"),
        (token() + ".x", "compact"),
        (token().rpartition(".")[0] + ".", "compact"),
        (token().rpartition(".")[0], "compact"),
        ("", "compact"),
        (json.dumps({"payload": text(CLAIMS), "signatures": []}), "compact"),
        ("x" * 8193, "more than"),
        (token(claims=CLAIMS | {"pad": "x" * 8192}), "more than"),
    ],
)
def test_refused(made: str, reason: str) -> None:
    with pytest.raises(InvalidJwtSvid, match=reason):
        validate(made, "orders", BUNDLES, NOW)


def test_a_signature_is_written_in_one_way() -> None:
    made = token()
    last = made[-1]
    others = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" if c != last]
    for other in others:
        with pytest.raises(InvalidJwtSvid):
            validate(made[:-1] + other, "orders", BUNDLES, NOW)
    signature = jose.decode(made.rpartition(".")[2])
    der_like = jose.encode(b"\0" + signature)
    with pytest.raises(InvalidJwtSvid):
        validate(f"{made.rpartition('.')[0]}.{der_like}", "orders", BUNDLES, NOW)


def test_nothing_is_taken_past_its_end() -> None:
    made = token()
    assert validate(made, "orders", BUNDLES, NOW + timedelta(seconds=299, microseconds=999_999))
    with pytest.raises(InvalidJwtSvid, match="has ended"):
        validate(made, "orders", BUNDLES, NOW + timedelta(seconds=300))


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        (HEADER | {"typ": "JOSE"}, CLAIMS),
        (without(HEADER, "typ"), CLAIMS),
        (HEADER, CLAIMS | {"exp": START + 86_400}),
        (HEADER, CLAIMS | {"nbf": START}),
        (HEADER, CLAIMS | {"nbf": START - 60}),
        (HEADER, CLAIMS | {"exp": START + 0.5}),
        (HEADER, without(CLAIMS, "iat")),
        (HEADER, CLAIMS | {"iat": 0, "nbf": 0}),
        (HEADER, CLAIMS | {"iat": 2**53 - 1}),
        (HEADER, CLAIMS | {"aud": "orders"}),
    ],
)
def test_taken(header: dict[str, Any], claims: dict[str, Any]) -> None:
    proved = validate(token(header, claims), "orders", BUNDLES, NOW)
    assert proved.expire_time.timestamp() == claims["exp"]


def test_a_token_has_a_largest_size() -> None:
    sizes = {}
    for padding in range(5600, 6200):
        made = token(claims=CLAIMS | {"pad": "x" * padding})
        sizes[len(made)] = made
        if len(made) > 8192:
            break
    assert validate(sizes[8192], "orders", BUNDLES, NOW)
    with pytest.raises(InvalidJwtSvid, match="more than 8192 bytes"):
        validate(sizes[max(sizes)], "orders", BUNDLES, NOW)


def test_without_an_issuer_a_token_names_none() -> None:
    assert "iss" not in sign_jwt_svid(JwtTemplate(WEB, ("orders",)), KEY, "k", NOW).claims


def test_a_token_says_by_which_certificate_its_node_joined() -> None:
    named = token_id("1f" * 20, bytes(range(8)))
    assert named == f"{'1f' * 20}.0001020304050607"
    made = sign_jwt_svid(JwtTemplate(WEB, ("orders",), token_id=named), KEY, "k", NOW)
    assert made.claims["jti"] == named
    assert made.node_serial == int("1f" * 20, 16)


def test_of_no_node_a_token_is_named_by_chance_alone() -> None:
    assert token_id("", bytes(range(8))) == "0001020304050607"


@pytest.mark.parametrize("named", [token_id("", bytes(range(8))), ""])
def test_a_token_of_no_node_says_so(named: str) -> None:
    made = sign_jwt_svid(JwtTemplate(WEB, ("orders",), token_id=named), KEY, "k", NOW)
    assert made.claims.get("jti", "") == named
    assert ("jti" in made.claims) is (named != "")
    assert made.node_serial == 0


@pytest.mark.parametrize(
    "said",
    [
        7,
        ["1f.0001020304050607"],
        "0001020304050607",
        ".0001020304050607",
        f"{'1' * 41}.0001020304050607",
        "1F.0001020304050607",
        "1f.000102030405060",
        "1f.00010203040506070",
        "1f.0001020304050607\n",
        " 1f.0001020304050607",
    ],
)
def test_what_others_name_their_tokens_by_is_no_serial_number(said: Any) -> None:
    assert validate(token(claims=CLAIMS | {"jti": said}), "orders", BUNDLES, NOW).node_serial == 0


def test_what_was_signed_must_be_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    template = JwtTemplate(WEB, ("orders",))
    good = sign_jwt_svid(template, KEY, "k", NOW)
    other = SpiffeId.workload("a.test", "globex", "web")
    for read in (replace(good, spiffe_id=other), replace(good, audience=("orders", "x"))):
        monkeypatch.setattr(jwt_svid, "validate", lambda *_, read=read: read)
        with pytest.raises(InvalidJwtSvid, match="isn't what was asked for"):
            sign_jwt_svid(template, KEY, "k", NOW)


def test_it_stays_what_was_proved() -> None:
    template = JwtTemplate(WEB, ("orders",))
    for made in (template, sign_jwt_svid(template, KEY, "k", NOW)):
        with pytest.raises(FrozenInstanceError):
            made.audience = ("x",)  # type: ignore[misc]


def test_a_token_lasts_whole_seconds_and_a_day_at_most() -> None:
    assert JwtTemplate(WEB, ("orders",), timedelta(seconds=1)).ttl == timedelta(seconds=1)
    made = sign_jwt_svid(JwtTemplate(WEB, ("orders",), timedelta(days=1)), KEY, "k", NOW)
    assert made.expire_time == NOW + timedelta(days=1)


def test_an_audience_that_a_token_may_have() -> None:
    values = [f"{number}".zfill(512) for number in range(16)]
    assert check_audience(values) == tuple(values)
    with pytest.raises(InvalidJwtSvid, match="17 values"):
        check_audience([*values, "x"])


@pytest.mark.parametrize("audience", [(), ("",), ("a", "a"), ("a\n",), ("\0",), ("x" * 513,), ("a",) * 17])
def test_an_audience_that_no_token_may_have(audience: tuple[str, ...]) -> None:
    with pytest.raises(InvalidJwtSvid, match="audience"):
        JwtTemplate(WEB, audience)


@pytest.mark.parametrize("ttl_s", [0, -1, 0.5, 86_401])
def test_a_life_that_no_token_may_have(ttl_s: float) -> None:
    with pytest.raises(InvalidJwtSvid, match="TTL"):
        JwtTemplate(WEB, ("a",), timedelta(seconds=ttl_s))


def test_who_asks_for_no_audience_proves_nothing() -> None:
    with pytest.raises(InvalidJwtSvid, match="isn't for"):
        validate(token(), "", BUNDLES, NOW)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text(made: str) -> None:
    with pytest.raises(InvalidJwtSvid):
        validate(made, "orders", BUNDLES, NOW)


@given(st.data())
def test_a_changed_token_proves_nothing(data: st.DataObject) -> None:
    made = token()
    at = data.draw(st.integers(0, len(made) - 1))
    put = data.draw(st.text(max_size=3))
    changed = made[:at] + put + made[at + data.draw(st.integers(0, 2)) :]
    if changed != made:
        with pytest.raises(InvalidJwtSvid):
            validate(changed, "orders", BUNDLES, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "x"]), JSON, max_size=4),
    st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "x"]), JSON, max_size=5),
)
def test_well_signed_nonsense_is_refused_or_is_sound(header: dict[str, Any], claims: dict[str, Any]) -> None:
    try:
        proved = validate(token(HEADER | header, CLAIMS | claims), "orders", BUNDLES, NOW)
    except InvalidJwtSvid:
        return
    assert proved.spiffe_id.trust_domain == "a.test"
    assert "orders" in proved.audience
    assert NOW < proved.expire_time <= NOW + timedelta(days=1)
