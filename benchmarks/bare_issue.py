"""A certificate by `cryptography` alone: the request checked, the leaf built and signed, read again and verified."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store

from benchmarks.process import Broken
from meshwarden.certs.issue import IssuerKey, key_usage

LEAF_POLICY = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.CRITICAL, None)
CA_POLICY = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.CRITICAL, None)


def bare_issue(uri: str, request: bytes, issuer: IssuerKey, now: datetime) -> list[bytes]:
    """Returns a chain in DER, without the root.

    Raises:
        Broken: the request isn't good, or what was signed isn't what was asked for.
    """
    csr = x509.load_der_x509_csr(request)
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(csr.extensions) or not csr.is_signature_valid:
        raise Broken("the request isn't good")
    above, names = issuer.certificate, x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    identifier = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    start = now.replace(microsecond=0) - timedelta(minutes=1)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(above.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(hours=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(names, critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    chain = [certificate.public_bytes(Encoding.DER) for certificate in (leaf, *issuer.chain[:-1])]
    read, *others = map(x509.load_der_x509_certificate, chain)
    policy = PolicyBuilder().store(Store([issuer.root])).time(now)
    verifier = policy.extension_policies(ca_policy=CA_POLICY, ee_policy=LEAF_POLICY).build_client_verifier()
    verifier.verify(read, others)
    extensions = read.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    if (
        extensions.get_extension_for_class(x509.SubjectAlternativeName).value != names
        or extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        or not usage.digital_signature
        or usage.key_cert_sign
        or read.public_key() != key
    ):
        raise Broken("what was signed isn't what was asked for")
    return chain
