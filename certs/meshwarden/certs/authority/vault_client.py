"""One client to a Vault or OpenBao server. Its calls block, so they run in a thread; each ends within a few seconds."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hvac
import requests
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized, VaultError

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable, Secret

TIMEOUT_S = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")
T = TypeVar("T")


class VaultDenied(AuthorityError):
    """Vault refuses our token: for this call, or altogether."""


class VaultMissing(AuthorityError):
    """There is nothing at the path."""


class VaultClient:
    """Calls Vault with a token, which never shows."""

    def __init__(
        self, address: str, token: Secret, *, ca_file: Path | None = None, namespace: str | None = None
    ) -> None:
        """Makes a client; it connects when it is first asked.

        Args:
            address: "https://vault:8200"; in the clear on the loopback interface only.
            token: the login.
            ca_file: PEM of the authorities of its TLS certificate; None takes the system's.
            namespace: the namespace to work in.

        Raises:
            AuthorityError: the address would send the token in the clear.
        """
        self.address = address
        parts = urlsplit(address)
        if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in LOOPBACK):
            raise AuthorityError(f"{address}: use https: otherwise the token would travel in the clear")
        session = requests.Session()
        # No proxy, netrc or authority from the environment gets between us and Vault.
        session.trust_env = False
        session.verify = str(ca_file) if ca_file else True
        self._client = hvac.Client(
            url=address,
            token=token.get_secret_value(),
            verify=session.verify,
            timeout=TIMEOUT_S,
            namespace=namespace,
            session=session,
            allow_redirects=False,
        )
        # A requests session isn't thread-safe. One call waits for its turn at a time; and who gives up leaves a thread
        # behind, which the next one waits for.
        self._turn = asyncio.Lock()
        self._busy = threading.Lock()

    async def call(self, what: str, work: Callable[[Any], T]) -> T:
        """Runs `work(hvac client)` in a thread.

        Args:
            what: names the call in errors: the path.
            work: makes one request.

        Raises:
            VaultDenied: the token may not.
            VaultMissing: there is nothing there.
            AuthorityUnavailable: the server can't be reached or can't answer now.
            AuthorityError: it refuses the request.
        """
        where = f"{self.address} {what}"

        def alone() -> T:
            with self._busy:
                return work(self._client)

        async with self._turn:
            try:
                return await asyncio.to_thread(alone)
            except (Forbidden, Unauthorized):
                raise VaultDenied(
                    f"{where}: the token may not, or has ended; deploy/vault/meshwarden.hcl is the policy it needs"
                ) from None
            except InvalidPath:
                raise VaultMissing(f"{where}: there is nothing there") from None
            except InvalidRequest as error:
                raise AuthorityError(f"{where}: refused: {error.errors or error}"[:1000]) from None
            except requests.exceptions.SSLError as error:
                raise AuthorityUnavailable(f"{where}: TLS failed, see ca_file: {error}"[:1000]) from None
            except (VaultError, requests.exceptions.RequestException) as error:
                raise AuthorityUnavailable(f"{where}: {type(error).__name__}: {error}"[:1000]) from None

    async def renew_token(self) -> timedelta | None:
        """Renews the token.

        Returns:
            How long it lasts now; None if it never ends.

        Raises:
            AuthorityError: it can't be renewed.
        """
        found = await self.call("auth/token/lookup-self", lambda client: client.auth.token.lookup_self())
        if not found["data"]["ttl"]:
            return None
        if found["data"].get("renewable"):
            renewed = await self.call("auth/token/renew-self", lambda client: client.auth.token.renew_self())
            return timedelta(seconds=renewed["auth"]["lease_duration"])
        return timedelta(seconds=found["data"]["ttl"])

    def close(self) -> None:
        """Ends connections."""
        self._client.adapter.close()
