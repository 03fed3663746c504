"""What settings are made of."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

TRUST_DOMAIN: Final = r"[a-z0-9._-]{1,255}"
REFERENCE: Final = r"^(credential|file|env|vault|transit):.+$"
LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# A reference: what opens Vault can't lie in Vault.
VAULT_REFERENCE: Final = r"^(credential|file|env):.+$"
VAULT_PATH: Final = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"
SecretPlace = Annotated[str, Field(pattern=VAULT_PATH)]


class Frozen(BaseModel):
    """A section: what isn't known in it is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('write HOST:PORT, "127.0.0.1:7443" for one')
    return value


Address = Annotated[str, AfterValidator(_address)]
