"""A token of Vault or OpenBao for a login: one that is there already, or one of our own that is revoked afterwards."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshwarden.controlplane.local.error import LocalError

_TIMEOUT_S: Final = 15
_MAX_SECRET_BYTES: Final = 4096
_OTHERS: Final = 0o077


@dataclass(frozen=True)
class VaultPlace:
    """Where Vault is; `ca_file` None takes the system's authorities."""

    address: str
    ca_file: Path | None
    namespace: str


def read(path: Path) -> str:
    """Reads a secret.

    Raises:
        LocalError: the file can't be read, is open to others, or holds none.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise LocalError(f"{path}: is open to others", f"chmod 600 {path}")
            text = file.read(_MAX_SECRET_BYTES).decode("ascii").strip()
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LocalError(f"{path}: holds no secret") from None
    if not text:
        raise LocalError(f"{path}: is empty")
    return text


@contextlib.contextmanager
def present(path: Path | None) -> Iterator[str]:
    """The token of a file, of the environment, or of the last `vault login`: it is somebody else's to revoke.

    Raises:
        LocalError: there is none.
    """
    if path is None and (found := os.environ.get("VAULT_TOKEN", "").strip()):
        yield found
        return
    kept = path or Path.home() / ".vault-token"
    if path is None and not kept.exists():
        raise LocalError("no token of Vault: neither VAULT_TOKEN nor ~/.vault-token", "log in: bao login, or --method")
    yield read(kept)


def userpass(place: VaultPlace, mount: str, username: str, password: str) -> contextlib.AbstractContextManager[str]:
    """Logs in by a password.

    Raises:
        LocalError: Vault refuses, or is away.
    """
    return _login(place, lambda vault: vault.auth.userpass.login(username, password, mount_point=mount))


def approle(place: VaultPlace, mount: str, role_id: str, secret_id: str) -> contextlib.AbstractContextManager[str]:
    """Logs in as an AppRole.

    Raises:
        LocalError: Vault refuses, or is away.
    """
    return _login(place, lambda vault: vault.auth.approle.login(role_id, secret_id, mount_point=mount))


@contextlib.contextmanager
def _login(place: VaultPlace, work: Callable[[Any], Any]) -> Iterator[str]:
    import hvac
    import requests

    if not place.address:
        raise LocalError("where is Vault?", "say so: --vault-address, or VAULT_ADDR")
    verify = str(place.ca_file) if place.ca_file is not None else True
    vault = hvac.Client(
        place.address,
        verify=verify,
        timeout=_TIMEOUT_S,
        allow_redirects=False,
        namespace=place.namespace or None,
        token="",
    )
    try:
        try:
            vault.token = str(work(vault)["auth"]["client_token"])
        except hvac.exceptions.VaultError as error:
            # Without its cause: that one carries the request.
            raise LocalError(f"{place.address}: Vault refuses the login: {'; '.join(error.errors or ())}") from None
        except (requests.RequestException, OSError, KeyError, TypeError) as error:
            raise LocalError(f"{place.address}: no login at Vault: {type(error).__name__}") from None
        try:
            yield vault.token
        finally:
            # It ends by itself if that fails.
            with contextlib.suppress(hvac.exceptions.VaultError, requests.RequestException):
                vault.auth.token.revoke_self()
    finally:
        vault.adapter.close()
