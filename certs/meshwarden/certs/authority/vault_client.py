"""One client to a Vault or OpenBao server: it logs in, keeps its token alive, and tries again what may pass by itself.

Its calls block, so they run in threads of its own, a few at a time.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hvac
import requests
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized, VaultDown, VaultError

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault_login import Login

# How long one request may take, and how long a call that fails for a moment only is tried again.
TIMEOUT_S = 5
RETRY_S = 3.0
FIRST_PAUSE_S = 0.1
# How often it is seen whether Vault is there and the token good.
LOOK = timedelta(seconds=10)
# The same while it is not.
LOOK_AGAIN = timedelta(seconds=2)
SESSIONS = 4
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SELF = "auth/token/lookup-self"
T = TypeVar("T")


class VaultDenied(AuthorityError):
    """Vault refuses our login, or this call to it."""


class VaultMissing(AuthorityError):
    """There is nothing at the path."""


class VaultSealed(AuthorityUnavailable):
    """Somebody has to unseal it: trying again is of no use."""


class VaultClient:
    """Calls Vault with a token, which never shows."""

    def __init__(
        self,
        address: str,
        login: Login,
        *,
        ca_file: Path | None = None,
        namespace: str | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        """Makes a client; it connects and logs in when it is first asked.

        Args:
            address: "https://vault:8200"; in the clear on the loopback interface only.
            login: where its token comes from.
            ca_file: PEM of the authorities of its TLS certificate; None takes the system's.
            namespace: the namespace to work in.
            retry_s: how long a call is tried again, in seconds.

        Raises:
            AuthorityError: the address would send the token in the clear.
        """
        self.address = address
        parts = urlsplit(address)
        if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in LOOPBACK):
            raise AuthorityError(f"{address}: use https: otherwise the token would travel in the clear")
        self._login = login
        self._namespace = namespace
        self._retry_s = retry_s
        self._token: str | None = None
        self._turn = asyncio.Lock()
        self._fault = ""
        # A requests session isn't thread-safe: each is one call's at a time. Who gives up leaves a thread behind, which
        # keeps its session until it ends.
        self._threads = ThreadPoolExecutor(SESSIONS, "vault")
        self._idle: asyncio.Queue[Any] = asyncio.Queue()
        self._sessions = [_session(address, ca_file, namespace) for _ in range(SESSIONS)]
        for session in self._sessions:
            self._idle.put_nowait(session)

    @property
    def fault(self) -> str:
        """Why Vault could do nothing for us when it was last looked at, or soon won't; empty if it could."""
        return self._fault

    async def call(self, path: str, work: Callable[[Any], T], capability: str = "update") -> T:
        """Runs `work(hvac client)` in a thread, and again for a while where it failed for a moment only.

        Args:
            path: the path that is asked; names the call in errors.
            work: makes one request.
            capability: what a policy must allow at the path.

        Raises:
            VaultDenied: our login may not.
            VaultMissing: there is nothing there.
            AuthorityUnavailable: the server can't be reached or can't answer now.
            AuthorityError: it refuses the request.
        """
        token = await self._logged_in(stale=None)
        try:
            return await self._try(path, work, token)
        except (Forbidden, Unauthorized):
            pass
        if await self._is_good(token):
            raise VaultDenied(
                f"{self.address} {path}: the login may not. It needs a policy with the line\n"
                f'  path "{path}" {{ capabilities = ["{capability}"] }}\n'
                "as in deploy/vault"
            )
        try:
            return await self._try(path, work, await self._logged_in(stale=token))
        except (Forbidden, Unauthorized):
            raise VaultDenied(self._ended()) from None

    async def tend(self) -> timedelta:
        """Sees whether Vault is there and our login good, renews the token at half of its life, or logs in anew.

        Returns:
            How long until it should be done again. `fault` says what is wrong.
        """
        try:
            said = await self._try("sys/seal-status", lambda client: client.sys.read_seal_status(), None)
            if said["sealed"]:
                raise VaultSealed(f"{self.address}: Vault is sealed")
            left = await self._keep_token()
            self._fault = ""
        except AuthorityError as error:
            self._fault = str(error)
            return LOOK_AGAIN
        return LOOK if left is None else max(timedelta(seconds=1), min(LOOK, left / 4))

    async def _keep_token(self) -> timedelta | None:
        """Returns how long the token lasts; None if it never ends."""
        left, granted, renewable = await self._life()
        if left is None or left > granted / 2:
            return left
        if renewable:
            await self.call("auth/token/renew-self", lambda client: client.auth.token.renew_self())
            left, granted, renewable = await self._life()
        if left is not None and left <= granted / 2:
            # Its last renewal lies behind it. A new login, or the file's new token, has a life of its own.
            await self._logged_in(stale=self._token)
            left, granted, renewable = await self._life()
        if left is not None and left <= granted / 2:
            raise VaultDenied(f"{self.address}: {self._login.description} ends in {left} and can't be renewed")
        return left

    async def _life(self) -> tuple[timedelta | None, timedelta, bool]:
        """How long the token lasts, what it was given, and whether it can be renewed."""
        data = (await self.call(SELF, lambda client: client.auth.token.lookup_self(), "read"))["data"]
        granted = timedelta(seconds=data.get("period") or data["creation_ttl"])
        return (timedelta(seconds=data["ttl"]) if data["ttl"] else None), granted, bool(data.get("renewable"))

    async def _logged_in(self, stale: str | None) -> str:
        """Returns a token; another than the stale one, if there is another."""
        async with self._turn:
            if self._token is None or self._token == stale:
                try:
                    self._token = await self._login.token(self._post)
                except (Forbidden, Unauthorized, InvalidRequest):
                    raise VaultDenied(f"{self.address}: {self._login.description}: the login is refused") from None
            return self._token

    async def _post(self, path: str, data: dict[str, str]) -> Any:
        return await self._try(path, lambda client: client.write_data(path, data=data), None, raw=(InvalidRequest,))

    async def _is_good(self, token: str) -> bool:
        with contextlib.suppress(Forbidden, Unauthorized):
            await self._try(SELF, lambda client: client.auth.token.lookup_self(), token)
            return True
        return False

    def _ended(self) -> str:
        return f"{self.address}: {self._login.description} is unknown to Vault, or has ended; give us another"

    async def _try(
        self, path: str, work: Callable[[Any], T], token: str | None, raw: tuple[type[Exception], ...] = ()
    ) -> T:
        """Runs a call until it is answered; refusals (401, 403 and `raw`) are as hvac raises them."""
        loop = asyncio.get_running_loop()
        end, pause_s = loop.time() + self._retry_s, FIRST_PAUSE_S
        while True:
            try:
                return await self._once(work, token)
            except (Forbidden, Unauthorized, *raw):
                raise
            except (VaultError, requests.exceptions.RequestException) as error:
                fault = self._fault_of(f"{self.address} {path}", error)
                if not isinstance(fault, AuthorityUnavailable) or isinstance(fault, VaultSealed):
                    raise fault from None
                if loop.time() + pause_s > end:
                    raise fault from None
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _once(self, work: Callable[[Any], T], token: str | None) -> T:
        session = await self._idle.get()

        def run() -> T:
            session.token = token
            return work(session)

        future = asyncio.get_running_loop().run_in_executor(self._threads, run)

        def done(asked: asyncio.Future[T]) -> None:
            self._idle.put_nowait(session)
            if not asked.cancelled():
                asked.exception()  # of whoever has stopped waiting nobody asks how it went

        future.add_done_callback(done)
        return await asyncio.shield(future)

    def _fault_of(self, where: str, error: Exception) -> AuthorityError:
        said = "; ".join(getattr(error, "errors", None) or ()) or type(error).__name__
        if isinstance(error, InvalidPath):
            if "namespace" in said:
                return VaultMissing(f"{where}: there is no namespace {self._namespace!r}")
            if "no handler" in said:
                return VaultMissing(f"{where}: nothing is mounted there; see the mount's path")
            return VaultMissing(f"{where}: there is nothing there")
        # An issuer that may sign no more, or is gone, is answered as a fault of the server: trying again mends none.
        if isinstance(error, InvalidRequest) or "requested usage" in said or "unable to find PKI issuer" in said:
            return AuthorityError(f"{where}: refused: {said}"[:1000])
        if isinstance(error, VaultDown) and "sealed" in said:
            return VaultSealed(f"{self.address}: Vault is sealed; unseal it")
        if isinstance(error, requests.exceptions.SSLError):
            return AuthorityUnavailable(f"{where}: TLS failed, see ca_file: {error}"[:1000])
        return AuthorityUnavailable(f"{where}: {type(error).__name__}: {error}"[:1000])

    def close(self) -> None:
        """Ends connections; the token stays as it is."""
        self._token = None
        for session in self._sessions:
            session.adapter.close()
        self._threads.shutdown(wait=False)


def _session(address: str, ca_file: Path | None, namespace: str | None) -> Any:
    session = requests.Session()
    # No proxy, netrc or authority from the environment gets between us and Vault.
    session.trust_env = False
    session.verify = str(ca_file) if ca_file else True
    make = functools.partial(hvac.Client, url=address, verify=session.verify, timeout=TIMEOUT_S, namespace=namespace)
    return make(session=session, allow_redirects=False, token="")
