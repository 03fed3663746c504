"""As much of Vault's HTTP API as a node needs to log in: one POST a call, bounded in size and time.

Errors: `ProofAway`, Vault does not answer; `ProofMissing`, it refuses.
"""

import asyncio
import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from meshwarden.agents.proof.port import ProofAway, ProofMissing

_TIMEOUT_S: Final = 5.0
_MAX_ANSWER_BYTES: Final = 256 * 1024


class VaultHttp:
    """Posts to Vault. Follows no redirect and asks no proxy, whatever the environment says."""

    def __init__(self, address: str, ca_file: Path | None, namespace: str | None) -> None:
        """Takes where Vault is, "https://vault.example:8200"; `ca_file` None takes the system's authorities."""
        self._address, self._ca_file, self._namespace = address, ca_file, namespace

    async def post(self, path: str, content: Mapping[str, str], token: str | None = None) -> dict[str, Any]:
        """Posts and returns the answer's JSON; empty if it has none.

        Raises:
            ProofAway: Vault does not answer, or can't now.
            ProofMissing: it refuses, or answers what is no answer.
        """
        return await asyncio.to_thread(self._post, path, content, token)

    def _post(self, path: str, content: Mapping[str, str], token: str | None) -> dict[str, Any]:
        where = f"{self._address}/v1/{path}"
        headers = {"Content-Type": "application/json", "X-Vault-Request": "true"}
        headers |= {"X-Vault-Token": token} if token else {}
        headers |= {"X-Vault-Namespace": self._namespace} if self._namespace else {}
        try:
            connection = self._connection()
            try:
                connection.request("POST", f"/v1/{path}", json.dumps(content), headers)
                answer = connection.getresponse()
                body = answer.read(_MAX_ANSWER_BYTES)
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise ProofAway(f"{where}: TLS failed, see ca_file: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ProofAway(f"{where}: {type(error).__name__}: {error}") from None
        if answer.status in (429, 500, 502, 503, 504):
            raise ProofAway(f"{where}: HTTP {answer.status}")
        try:
            said = json.loads(body) if body else {}
        except ValueError:
            said = None
        if answer.status not in (200, 204) or not isinstance(said, dict):
            errors = said.get("errors") if isinstance(said, dict) else None
            reason = "; ".join(str(error)[:200] for error in errors[:3]) if isinstance(errors, list) else ""
            raise ProofMissing(f"{where}: HTTP {answer.status}{': ' + reason if reason else ''}")
        return said

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._address)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_S)
        context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)
        return http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT_S, context=context)
