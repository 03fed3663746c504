"""Proves it by a join token in a file."""

from pathlib import Path

from meshwarden.agents.proof.port import Proof, ProofMissing, read_file
from meshwarden.v1 import node_service_pb2 as node_pb


class TokenProof(Proof):
    """A token that an operator has made for this node."""

    def __init__(self, node: str, path: Path | None) -> None:
        """Takes whose token it is and where; None is nowhere."""
        self._node, self._path = node, path

    async def request(self) -> node_pb.AttestRequest:
        """Reads the file anew: a token that was refused may have been replaced."""
        path = self._path
        fix = f"make one with `meshwarden token create --node {self._node}` and name its file as join_token_file"
        if path is None:
            raise ProofMissing(f"node {self._node} has no identity and no join token: {fix}")
        try:
            token = read_file(path, "the join token").decode("ascii").strip()
        except (ProofMissing, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, ProofMissing) else f"the join token in {path} is not text"
            raise ProofMissing(f"{reason}: {fix}") from None
        if not 16 <= len(token) <= 256:
            raise ProofMissing(f"{path} holds no join token: {fix}")
        return node_pb.AttestRequest(join_token=token)

    async def answer(self, challenge: bytes, csr: bytes) -> bytes:
        """A token is all there is."""
        raise ProofMissing("the control plane challenges a join token, which this agent does not understand")

    def fix(self, node: str) -> str:
        """A new token."""
        return (
            "a join token works once, for ten minutes and for the node that it names. Make a new one with "
            f"`meshwarden token create --node {node}`, put it into {self._path} and start the agent again"
        )

    async def end(self) -> None:
        """The file is the operator's."""
