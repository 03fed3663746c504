"""How we log in to Vault by what the configuration says."""

from collections.abc import Awaitable, Callable

from pydantic import SecretStr

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_login import AppRoleLogin, Login, Read, TokenLogin
from meshwarden.controlplane.secrets.port import SecretError, VaultSettings

Resolve = Callable[[str], Awaitable[SecretStr]]


def client_of(settings: VaultSettings, resolve: Resolve) -> VaultClient:
    """Makes a client.

    Args:
        settings: where Vault is, and how to log in.
        resolve: reads a reference, anew at each login.

    Raises:
        AuthorityError: the address would send the token in the clear, or what opens Vault lies in Vault.
    """
    return VaultClient(
        settings.address, _login(settings, resolve), ca_file=settings.ca_file, namespace=settings.namespace
    )


def _login(settings: VaultSettings, resolve: Resolve) -> Login:
    role = settings.approle
    if role is not None:
        return AppRoleLogin(role.role_id, _reader(role.secret_id, resolve), role.mount)
    token = settings.token or ""
    return TokenLogin(_reader(token, resolve), f"the token of {token}")


def _reader(reference: str, resolve: Resolve) -> Read:
    if reference.startswith(("vault:", "transit:")):
        raise AuthorityError(f"{reference}: what opens Vault can't lie in Vault; use file: or env:")

    async def read() -> SecretStr:
        try:
            return await resolve(reference)
        except SecretError as error:
            raise AuthorityError(str(error)) from None

    return read
