"""Certificate signing requests. One contributes its public key and nothing else."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshwarden.certs.error import UNREADABLE, CertsError

MAX_SIZE_BYTES = 8192
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 4096 + 1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class InvalidCsr(CertsError):
    """A signing request is refused."""


def make_csr(key: PrivateKey) -> bytes:
    """Returns a request in DER that proves the possession of a key and asks for nothing."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def parse_csr(der: bytes) -> PublicKey:
    """Reads a request and returns its public key, once its owner's signature is verified.

    Raises:
        InvalidCsr: it is larger than 8 KiB, not exactly one DER request, signed wrongly or by a weak hash, its key is
            none of P-256, P-384 and RSA of 2048 to 4096 bits, or it asks for extensions.
    """
    if len(der) > MAX_SIZE_BYTES:
        raise InvalidCsr(f"CSR of {len(der)} bytes: at most {MAX_SIZE_BYTES} are taken")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        # What a request asks for, extensions included, are its attributes.
        asks = bool(request.attributes)
    except UNREADABLE:
        raise InvalidCsr("CSR: not one well-formed PKCS#10 request in DER") from None
    allowed = check_key(key)
    if allowed is None:
        raise InvalidCsr("CSR: the key must be P-256, P-384, or RSA of 2048 to 4096 bits")
    if asks:
        raise InvalidCsr("CSR: it asks for attributes or extensions; the registration alone says what is issued")
    # The cheap checks come first: verifying is what costs.
    try:
        strong = isinstance(request.signature_hash_algorithm, _HASHES)
        valid = strong and request.is_signature_valid
    except UNREADABLE:
        valid = False
    if not valid:
        raise InvalidCsr("CSR: its signature is not that of its key, or made with a weak hash")
    return allowed


def check_key(key: object) -> PublicKey | None:
    """Returns the key if it is of a kind that we take, else None."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_BITS and key.public_numbers().e == 65537:
        return key
    return None


def spki(key: PublicKey) -> bytes:
    """Returns a public key as SubjectPublicKeyInfo in DER: what makes two keys the same."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
