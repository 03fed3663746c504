"""Chains that a peer may show: the good ones, and each with one fault.

Source: research on both TLS stacks; X509-SVID §2 to §5, RFC 5280 §6.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from certs_build import HOUR, NOW, WEB, Made, Plan, authority, numbered, resigned, rsa_key, uri, usage
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshwarden.certs.bundle import Bundle

ROOT = authority("root of a")()
OTHER = authority("root of b")()
ISSUING = authority("issuing of a", path_length=0, end=NOW + timedelta(days=7))(ROOT)
RSA_ISSUING = authority("RSA", key=rsa_key(2048))(ROOT)
RSA_ROOT = authority("RSA root", key=rsa_key(2048))()
UNNEEDED = authority("issuing of b")(OTHER)
BUNDLES = {
    "a.test": Bundle.of("a.test", [ROOT.certificate, RSA_ROOT.certificate]),
    "b.test": Bundle.of("b.test", [OTHER.certificate]),
}


SHA1, MD5 = hashes.SHA1(), hashes.MD5()  # noqa: S303 - what must be refused
# What is shown: certificates with the leaf's key, so that TLS can be tried; or mere bytes.
Shown = Made | list[bytes]


def leaf(issuer: Made = ISSUING, **changes: object) -> Made:
    return replace(Plan(), **changes)(issuer)


def named(*names: x509.GeneralName, **changes: object) -> Made:
    return leaf(names=names, **changes)


def chain_of(shown: Shown) -> list[bytes]:
    return shown.chain if isinstance(shown, Made) else shown


def deep(count: int) -> Made:
    issuer = ROOT
    for number in range(count):
        issuer = authority(f"issuing {number}")(issuer)
    return issuer


GOOD = leaf().chain

ACCEPTED: dict[str, Callable[[], Shown]] = {
    "signed by an intermediate": leaf,
    "signed by the root": lambda: leaf(ROOT),
    "signed by RSA": lambda: leaf(RSA_ISSUING),
    "signed under an RSA root": lambda: leaf(authority("below RSA")(RSA_ROOT)),
    "a DNS name beside the URI": lambda: named(uri(WEB), x509.DNSName("web.example")),
    "P-384": lambda: leaf(key=ec.generate_private_key(ec.SECP384R1())),
    "RSA-2048": lambda: leaf(key=rsa_key(2048)),
    "no extended key usage": lambda: leaf(purposes=None),
    "no basic constraints": lambda: leaf(ca=None),
    "an unneeded certificate": lambda: replace(leaf(), above=(*leaf().above[:1], UNNEEDED)),
    "b's own ID": lambda: named(uri("spiffe://b.test/x"), issuer=OTHER),
    "with a subject, names not critical": lambda: leaf(
        subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")]), names_critical=False
    ),
}

FAULTS: dict[str, Callable[[], Shown]] = {
    "no certificate": list,
    "not DER": lambda: [b"-----BEGIN CERTIFICATE-----"],
    "oversized": lambda: [b"\x30" * 20000],
    "trailing bytes": lambda: [GOOD[0] + b"\0", *GOOD[1:]],
    "two SPIFFE IDs": lambda: named(uri(WEB), uri("spiffe://a.test/operator/ann")),
    "the same ID twice": lambda: named(uri(WEB), uri(WEB)),
    "SPIFFE and https": lambda: named(uri(WEB), uri("https://a.test/")),
    "DNS name only": lambda: named(x509.DNSName("a.test")),
    "no names": lambda: named(),
    "https": lambda: named(uri("https://a.test/tenant/acme/service/web")),
    "authority as leaf": lambda: leaf(ROOT, ca=True),
    "an intermediate with an ID as leaf": lambda: authority("x", names=(uri(WEB),), names_critical=False)(ROOT),
    "keyCertSign": lambda: leaf(usage=usage(digital_signature=True, key_cert_sign=True)),
    "cRLSign": lambda: leaf(usage=usage(digital_signature=True, crl_sign=True)),
    "no digitalSignature": lambda: leaf(usage=usage(key_encipherment=True)),
    "no key usage": lambda: leaf(usage=None),
    "key usage not critical": lambda: leaf(usage_critical=False),
    "names not critical, no subject": lambda: leaf(names_critical=False),
    "no clientAuth": lambda: leaf(purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)),
    "a's ID signed by b": lambda: leaf(OTHER),
    "unknown trust domain": lambda: named(uri("spiffe://c.test/x")),
    "b's ID signed by a": lambda: named(uri("spiffe://b.test/x")),
    "no path": lambda: named(uri("spiffe://a.test")),
    "root path": lambda: named(uri("spiffe://a.test/")),
    "trailing slash": lambda: named(uri(WEB + "/")),
    "double slash": lambda: named(uri("spiffe://a.test//x")),
    "dots": lambda: named(uri("spiffe://a.test/../x")),
    "percent": lambda: named(uri("spiffe://a.test/%2e%2e/x")),
    "query": lambda: named(uri(WEB + "?x")),
    "fragment": lambda: named(uri(WEB + "#x")),
    "port": lambda: named(uri("spiffe://a.test:1/x")),
    "user": lambda: named(uri("spiffe://u@a.test/x")),
    "newline": lambda: named(uri(WEB + "\n")),
    "NUL": lambda: named(uri(WEB + "\0x")),
    "too long": lambda: named(uri("spiffe://a.test/" + "x" * 2048)),
    "upper-case trust domain": lambda: named(uri("spiffe://A.test/x")),
    "upper-case scheme": lambda: named(uri("SPIFFE://a.test/x")),
    "RSA-1024": lambda: leaf(key=rsa_key(1024)),
    "P-224": lambda: leaf(key=ec.generate_private_key(ec.SECP224R1())),
    "P-521": lambda: leaf(key=ec.generate_private_key(ec.SECP521R1())),
    "secp256k1": lambda: leaf(key=ec.generate_private_key(ec.SECP256K1())),
    "Ed25519": lambda: leaf(key=ed25519.Ed25519PrivateKey.generate()),
    "SHA-1 on the leaf": lambda: resigned(Plan()(RSA_ISSUING), SHA1),
    "SHA-1 on the intermediate": lambda: leaf(resigned(authority("weak")(RSA_ROOT), SHA1)),
    "MD5": lambda: resigned(Plan()(RSA_ISSUING), MD5),
    "signed by Ed25519": lambda: leaf(authority("ed", key=ed25519.Ed25519PrivateKey.generate())(ROOT), hash=None),
    "intermediate with RSA-1024": lambda: leaf(authority("weak", key=rsa_key(1024))(ROOT)),
    "serial number zero": lambda: numbered(leaf(), b"\0"),
    "negative serial number": lambda: numbered(leaf(), b"\xff"),
    "12 intermediates": lambda: leaf(deep(12)),
    "6 intermediates": lambda: leaf(deep(6)),
    "not valid yet": lambda: leaf(start=NOW + HOUR, end=NOW + 2 * HOUR),
    "expired": lambda: leaf(end=NOW - timedelta(seconds=1)),
    "unknown root": lambda: leaf(authority("root of a")()),
    "forged root": lambda: leaf(Made(ROOT.certificate, ec.generate_private_key(ec.SECP256R1()))),
    "forged intermediate": lambda: leaf(
        authority("issuing of a", signer=ec.generate_private_key(ec.SECP256R1()))(ROOT)
    ),
    "missing intermediate": lambda: replace(leaf(), above=()),
    "path length": lambda: leaf(authority("below")(ISSUING)),
    "issuer is a leaf": lambda: leaf(Plan(subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "l")]))(ROOT)),
    "issuer without keyCertSign": lambda: leaf(authority("x", usage=usage(crl_sign=True))(ROOT)),
    "issuer CA:FALSE with keyCertSign": lambda: leaf(authority("x", ca=False)(ROOT)),
    "expired intermediate": lambda: leaf(authority("x", end=NOW - timedelta(seconds=1))(ROOT)),
    "intermediate not valid yet": lambda: leaf(authority("x", start=NOW + HOUR)(ROOT)),
    "critical unknown extension": lambda: leaf(
        extra=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),)
    ),
    "DNS name constraint": lambda: named(
        uri(WEB),
        x509.DNSName("web.example"),
        issuer=authority("DNS", extra=((x509.NameConstraints([x509.DNSName("other.example")], None), True),))(ROOT),
    ),
    # Not a fault of the peer, but a limit of ours that is documented.
    "URI name constraint": lambda: leaf(
        authority(
            "constrained",
            extra=((x509.NameConstraints([x509.UniformResourceIdentifier("a.test")], None), True),),
        )(ROOT)
    ),
}
