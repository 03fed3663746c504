"""How a client gets its token: it is given one, or logs in as an AppRole. What opens Vault is read at each login."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from meshwarden.certs.authority.port import Secret

Read = Callable[[], Awaitable[Secret]]
"""Reads the present secret: a file that somebody else keeps fresh has a new one after a while."""

Post = Callable[[str, dict[str, str]], Awaitable[Any]]
"""Posts to a path without a token and returns the answer's JSON."""


class Login(Protocol):
    """A way to a token."""

    @property
    def description(self) -> str:
        """What opens Vault, for errors: "the token", "AppRole at auth/approle"."""
        ...

    async def token(self, post: Post) -> str:
        """Returns a token.

        Raises:
            AuthorityError: Vault can't be reached, or refuses the login.
        """
        ...


@dataclass(frozen=True)
class TokenLogin:
    """A token that somebody has made for us."""

    read: Read = field(repr=False)
    description: str = "the token"

    async def token(self, post: Post) -> str:
        """Returns the token as it is now."""
        return (await self.read()).get_secret_value()


@dataclass(frozen=True)
class AppRoleLogin:
    """A role's two halves: who it is, and the secret that proves it."""

    role_id: str
    read_secret_id: Read = field(repr=False)
    mount: str = "approle"

    @property
    def description(self) -> str:
        """What opens Vault, for errors."""
        return f"AppRole at auth/{self.mount}"

    async def token(self, post: Post) -> str:
        """Logs in."""
        secret_id = (await self.read_secret_id()).get_secret_value()
        answer = await post(f"auth/{self.mount}/login", {"role_id": self.role_id, "secret_id": secret_id})
        return str(answer["auth"]["client_token"])


def token_login(secret: Secret) -> TokenLogin:
    """Returns the login of a token that stays as it is."""

    async def read() -> Secret:
        return secret

    return TokenLogin(read)
