"""Proving the possession of a certificate's key, and that the certificate is of a given authority.

A machine that has a certificate already (of an enterprise's PKI, of its maker) shows it and signs what it is challenged
with. The signature is over the challenge and over the request that comes with it, so it is good for nobody else's.

All that a stranger sends is bounded before anything is computed with it: the number and size of certificates first,
then the kind and size of every key, then signatures.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from meshwarden.certs.csr import PrivateKey, check_key
from meshwarden.certs.error import UNREADABLE, CertsError

MAX_CHAIN = 4
MAX_CERTIFICATE_SIZE_BYTES = 8 * 1024
_PURPOSE = b"meshwarden attestation by possession, version 1\0"
_STRONG = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class NotPossessed(CertsError):
    """A certificate, or the possession of its key, isn't proved; the message is the reason."""


def parse_chain(chain_der: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Reads certificates, and refuses those that it would cost much to look at.

    Args:
        chain_der: certificates in DER, the leaf first.

    Raises:
        NotPossessed: there are none or too many, one is too large or unreadable, or its key is none of P-256, P-384 and
            RSA of 2048 to 4096 bits.
    """
    if not 1 <= len(chain_der) <= MAX_CHAIN:
        raise NotPossessed(f"chain of {len(chain_der)} certificates: 1 to {MAX_CHAIN} are taken")
    if any(len(der) > MAX_CERTIFICATE_SIZE_BYTES for der in chain_der):
        raise NotPossessed(f"certificate of more than {MAX_CERTIFICATE_SIZE_BYTES} bytes")
    try:
        chain = tuple(x509.load_der_x509_certificate(der) for der in chain_der)
        keys = [check_key(certificate.public_key()) for certificate in chain]
    except UNREADABLE:
        raise NotPossessed("chain: not X.509 certificates in DER") from None
    if None in keys:
        raise NotPossessed("chain: every key must be P-256, P-384, or RSA of 2048 to 4096 bits")
    return chain


def verify_issued(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime) -> None:
    """Sees that a leaf is a certificate of a machine's, valid now, and leads to one of the roots.

    Args:
        chain: of `parse_chain`.
        roots: the authorities that are believed.
        now: the moment to verify for, aware.

    Raises:
        NotPossessed: it isn't.
    """
    leaf = chain[0]
    try:
        _check_leaf(leaf)
        verifier = (
            PolicyBuilder()
            .store(Store(list(roots)))
            .time(now)
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=ExtensionPolicy.permit_all())
            .build_client_verifier()
        )
        path = verifier.verify(leaf, list(chain[1:])).chain
    except VerificationError as error:
        raise NotPossessed(f"no valid path to the configured authority: {error}"[:500]) from None
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise NotPossessed("a certificate of the chain is malformed") from None
    # A root is trusted for being configured, not for its own signature.
    if not all(isinstance(certificate.signature_hash_algorithm, _STRONG) for certificate in path[:-1]):
        raise NotPossessed("a signature of the chain isn't made with SHA-256, SHA-384 or SHA-512")


def prove(key: PrivateKey, challenge: bytes, csr: bytes) -> bytes:
    """Signs a challenge together with the request that it came for."""
    statement = _statement(challenge, csr)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(statement, ec.ECDSA(_hash(key.curve)))
    return key.sign(statement, _PSS, hashes.SHA256())


def verify_possession(leaf: x509.Certificate, challenge: bytes, csr: bytes, signature: bytes) -> None:
    """Sees that `prove` was called with the key of `leaf`, which `parse_chain` has read.

    Raises:
        NotPossessed: it wasn't, or for another challenge or request.
    """
    key, statement = check_key(leaf.public_key()), _statement(challenge, csr)
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, statement, ec.ECDSA(_hash(key.curve)))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, statement, _PSS, hashes.SHA256())
        else:
            raise InvalidSignature
    except InvalidSignature:
        raise NotPossessed("the challenge isn't signed with the certificate's key, or for another request") from None


def _require_signing(_: object, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the issuer's key usage lacks keyCertSign")


_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_signing)
)
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


def _check_leaf(leaf: x509.Certificate) -> None:
    extensions = leaf.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise NotPossessed("the certificate is an authority's, not a machine's")
    except x509.ExtensionNotFound:
        pass  # RFC 5280: without it, it is no authority
    try:
        if not extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            raise NotPossessed("the certificate's key usage lacks digitalSignature")
    except x509.ExtensionNotFound:
        raise NotPossessed("the certificate has no key usage; it must say digitalSignature") from None
    try:
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise NotPossessed("the certificate's extended key usage lacks clientAuth")
    except x509.ExtensionNotFound:
        pass


def _hash(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    return hashes.SHA384() if isinstance(curve, ec.SECP384R1) else hashes.SHA256()


def _statement(challenge: bytes, csr: bytes) -> bytes:
    # Of fixed length each, so that no two pairs make one statement.
    return _PURPOSE + hashlib.sha256(challenge).digest() + hashlib.sha256(csr).digest()
