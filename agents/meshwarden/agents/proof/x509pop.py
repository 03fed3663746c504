"""Proves it by a certificate that the machine has already, and by signing with its key."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from meshwarden.agents.proof.port import Proof, ProofMissing, read_file, read_private
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.possession import MAX_CHAIN, prove
from meshwarden.v1 import node_service_pb2 as node_pb


class PossessionProof(Proof):
    """A certificate and its key in files, which somebody else keeps fresh."""

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        """Takes where they are, in PEM; intermediates follow the certificate."""
        self._certificate_file, self._key_file = certificate_file, key_file

    async def request(self) -> node_pb.AttestRequest:
        """Reads the certificates anew."""
        path = self._certificate_file
        try:
            chain = x509.load_pem_x509_certificates(read_file(path, "the certificate"))
        except UNREADABLE:
            raise ProofMissing(f"{path} holds no certificates in PEM") from None
        if len(chain) > MAX_CHAIN:
            raise ProofMissing(f"{path} has {len(chain)} certificates: the node's and its intermediates are wanted")
        ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        return node_pb.AttestRequest(x509pop=node_pb.X509PopProof(chain=ders))

    async def answer(self, challenge: bytes, csr: bytes) -> bytes:
        """Signs the challenge together with our request."""
        content = read_private(self._key_file, "the key")
        try:
            key = load_pem_private_key(content, None)
        except UNREADABLE:
            raise ProofMissing(f"the key in {self._key_file} is no private key in PEM without a password") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ProofMissing(f"the key in {self._key_file} is neither of an elliptic curve nor of RSA")
        return prove(key, challenge, csr)

    def fix(self, node: str) -> str:
        """A certificate that the control plane takes."""
        return (
            f"the certificate in {self._certificate_file} must be good now, lead to the ca_file of the control plane's "
            f"[[attestor]] of kind x509pop, and name node {node} there; then start the agent again"
        )

    async def end(self) -> None:
        """The files are somebody else's."""
