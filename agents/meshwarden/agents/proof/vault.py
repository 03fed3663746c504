"""Proves it by a login at Vault or OpenBao: the control plane looks up the token that the login has given.

The agent logs in as an AppRole, unwraps a token that was wrapped for it, or shows one that somebody else keeps fresh. A
token that it has obtained itself is kept until the control plane has answered, so that a lost reply costs no second
login, and is then revoked.
"""

from pathlib import Path
from typing import Any, Final

import structlog

from meshwarden.agents.proof.port import Proof, ProofAway, ProofMissing, read_private
from meshwarden.agents.proof.vault_http import VaultHttp
from meshwarden.v1 import node_service_pb2 as node_pb

_MIN_TOKEN: Final = 8
_MAX_TOKEN: Final = 1024

_log = structlog.get_logger()


class VaultProof(Proof):
    """A login."""

    def __init__(
        self,
        vault: VaultHttp | None,
        *,
        token_file: Path | None = None,
        wrapped_token_file: Path | None = None,
        role_id: str = "",
        secret_id_file: Path | None = None,
        mount: str = "approle",
    ) -> None:
        """Takes one of three ways to a token.

        Args:
            vault: where to log in or to unwrap; None if a token is given.
            token_file: a token that somebody else keeps fresh.
            wrapped_token_file: a wrapping token, which is used up.
            role_id: the AppRole.
            secret_id_file: its secret.
            mount: the path of the auth method.
        """
        self._vault, self._token_file, self._wrapped_token_file = vault, token_file, wrapped_token_file
        self._role_id, self._secret_id_file, self._mount = role_id, secret_id_file, mount
        self._obtained = ""

    async def request(self) -> node_pb.AttestRequest:
        """Logs in, unless a login is at hand."""
        if self._token_file is not None:
            token = _text(self._token_file, "the Vault token")
        else:
            token = self._obtained = self._obtained or await self._obtain()
        return node_pb.AttestRequest(vault=node_pb.VaultProof(token=token))

    async def answer(self, challenge: bytes, csr: bytes) -> bytes:
        """A token is all there is."""
        raise ProofMissing("the control plane challenges a Vault token, which this agent does not understand")

    def fix(self, node: str) -> str:
        """A login that the control plane takes."""
        return (
            f"the login must be one that the control plane's [[attestor]] of kind vault takes, and name node {node} "
            "there; see docs/identity.md, mend it and start the agent again"
        )

    async def end(self) -> None:
        """Revokes a token that we have obtained ourselves; it ends by itself if that fails."""
        token, self._obtained = self._obtained, ""
        if not token or self._vault is None:
            return
        try:
            await self._vault.post("auth/token/revoke-self", {}, token)
        except (ProofAway, ProofMissing) as error:
            _log.info("vault token not revoked", reason=str(error))

    async def _obtain(self) -> str:
        assert self._vault is not None  # noqa: S101 - the configuration says so
        if self._wrapped_token_file is not None:
            wrapping = _text(self._wrapped_token_file, "the wrapping token")
            answer = await self._vault.post("sys/wrapping/unwrap", {}, wrapping)
        else:
            assert self._secret_id_file is not None  # noqa: S101 - the configuration says so
            secret = {"role_id": self._role_id, "secret_id": _text(self._secret_id_file, "the secret_id")}
            answer = await self._vault.post(f"auth/{self._mount}/login", secret)
        auth: Any = answer.get("auth")
        token = auth.get("client_token") if isinstance(auth, dict) else None
        if not isinstance(token, str) or not _MIN_TOKEN <= len(token) <= _MAX_TOKEN:
            raise ProofMissing("Vault's answer holds no token: was something else wrapped than a login?")
        return token


def _text(path: Path, what: str) -> str:
    try:
        text = read_private(path, what).decode("ascii").strip()
    except UnicodeDecodeError:
        # Without its cause: that one carries the content.
        raise ProofMissing(f"{what} in {path} is not text") from None
    if not _MIN_TOKEN <= len(text) <= _MAX_TOKEN:
        raise ProofMissing(f"{path} does not hold {what}")
    return text
