"""What a control plane is told: a TOML file, then the environment (`MESHWARDEN_…`), read once at start.

    trust_domain = "mesh.example"
    region = "eu"
    state_dir = "/var/lib/meshwarden"
    listen = "0.0.0.0:7443"

    [authority]
    kind = "disk"
    passphrase = "credential:ca-passphrase"

`ConfigError` says which key is wrong and why.
"""

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from meshwarden.controlplane.config.authority import AuthorityConfig, VaultAuthorityConfig
from meshwarden.controlplane.config.history import HistoryConfig
from meshwarden.controlplane.config.identity import AnyAttestorConfig, LimitsConfig, OperatorLoginConfig
from meshwarden.controlplane.config.rest import RestConfig
from meshwarden.controlplane.config.telemetry import OtlpConfig, TailSamplingConfig, TenantTracesConfig
from meshwarden.controlplane.config.value import LABEL, REFERENCE, TRUST_DOMAIN, Address, Frozen, SecretPlace
from meshwarden.controlplane.config.vault import VaultConfig
from meshwarden.sdk.mtls.front import MAX_INNER_BYTES

INNER: Final = "inner"


class ConfigError(Exception):
    """The configuration can't be used; the message names the file, the key and the reason."""


class PeerConfig(Frozen):
    """Another region, which is asked for what it has counted."""

    region: str = Field(pattern=f"^{LABEL}$")
    # Where its control plane listens, "HOST:PORT".
    address: Address


class SpiffeEndpointConfig(Frozen):
    """Where others find what proves our identities: other trust domains our bundle, and OpenID Connect our JWT keys."""

    # For everybody, with TLS.
    listen: Address
    # By which certificate it shows itself: the control plane's own SVID, or one of the web's PKI.
    profile: Literal["https_spiffe", "https_web"] = "https_spiffe"
    # With https_web: the chain and its key, PEM; read again when they change.
    certificate: Path | None = None
    key: Path | None = None
    # The issuer of our JWT-SVIDs, as OpenID Connect has it: "https://oidc.mesh.example", which must lead here.
    issuer: str = Field(default="", pattern=r"^(https://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?)?$")

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.profile == "https_web") != (self.certificate is not None and self.key is not None):
            raise ValueError("certificate and key: both with https_web, and none with https_spiffe")
        return self


class Config(BaseSettings):
    """The settings of one control plane process."""

    model_config = SettingsConfigDict(
        env_prefix="MESHWARDEN_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    # The name that all identities of the mesh begin with: "spiffe://<trust domain>/…".
    trust_domain: str = Field(pattern=f"^{TRUST_DOMAIN}$")
    # Where this control plane and its nodes are.
    region: str = Field(default="default", pattern=f"^{LABEL}$")
    # Its own directory: what it knows lies there.
    state_dir: Path
    # Left out, <state_dir>/store.sqlite. Several control planes of a machine share it, each with its own state_dir.
    store_file: Path | None = None
    # Where agents and operators connect, mTLS only; port 0 takes a free one.
    listen: Address = "127.0.0.1:7443"
    # Where Prometheus scrapes: loopback, in the clear.
    metrics_listen: Address = "127.0.0.1:7444"
    # After so many seconds without a call a series of calls is forgotten.
    metrics_idle_s: float = Field(default=3600.0, ge=60.0)
    # How long spans are kept for `meshwarden traces`, and how much of them; beyond, the tenant that has most of them
    # loses its oldest.
    traces_keep_s: float = Field(default=86_400.0, ge=60.0, le=30 * 86_400.0)
    traces_max_bytes: int = Field(default=512 << 20, ge=0)
    traces_of: dict[Annotated[str, Field(pattern=f"^{LABEL}$")], TenantTracesConfig] = {}
    # Who signs.
    authority: AuthorityConfig
    # How nodes may prove who they are, beside join tokens; one of a kind.
    attestor: tuple[AnyAttestorConfig, ...] = ()
    # Whom a token of Vault lets operate; left out, nobody.
    operator_login: OperatorLoginConfig | None = None
    # How much of what costs work is done for one caller.
    limits: LimitsConfig = LimitsConfig()
    # How much is kept of what was changed, by whom and why.
    history: HistoryConfig = HistoryConfig()
    # Where telemetry goes on to.
    otlp: tuple[OtlpConfig, ...] = ()
    # Which traces go on; left out, all.
    tail_sampling: TailSamplingConfig | None = None
    # How often the control plane's own metrics go there.
    otlp_metrics_interval_s: float = Field(default=60.0, ge=1.0, le=3600.0)
    # Where `vault:` references are read; left out, the authority's Vault.
    vault: VaultConfig | None = None
    # Below which places a tenant's entries may name secrets: { acme = ["kv/teams/acme"] }. A tenant that isn't here has
    # <mount>/meshwarden/<tenant>/.
    secrets_of: dict[Annotated[str, Field(pattern=f"^{LABEL}$")], tuple[SecretPlace, ...]] = {}
    # How often it is seen whether Vault has newer ones.
    secrets_poll_s: float = Field(default=30.0, ge=1.0, le=86_400.0)
    # The other regions of the trust domain.
    peer: tuple[PeerConfig, ...] = ()
    # What the keys of JWT-SVIDs are encrypted under in the store, a reference; left out, the passphrase of a root on
    # disk, or else those keys are in memory alone and a restart makes new ones.
    jwt_passphrase: str | None = Field(default=None, pattern=REFERENCE)
    # Where others find what proves our identities; left out, nowhere.
    spiffe_endpoint: SpiffeEndpointConfig | None = None
    # The REST API; left out, nowhere.
    rest: RestConfig | None = None
    # Proves other trust domains' endpoints with https_web, in place of the authorities that the system trusts; PEM.
    federation_ca_file: Path | None = None
    # Keeps a short-lived operator certificate in this directory, for whoever may read it.
    operator_directory: Path | None = None

    @field_validator("state_dir")
    @classmethod
    def _short(cls, value: Path) -> Path:
        length, most = len(os.fsencode(value.absolute())), MAX_INNER_BYTES - len(f"/{INNER}")
        if length > most:
            raise ValueError(f"{value} has {length} bytes, and Unix sockets below it leave {most}: say a shorter one")
        return value

    @property
    def inner_dir(self) -> Path:
        """Where the front and the gRPC server behind it meet."""
        return self.state_dir / INNER

    @field_validator("metrics_listen")
    @classmethod
    def _loopback(cls, value: str) -> str:
        host, _, _ = value.rpartition(":")
        if host != "localhost" and not ipaddress.ip_address(host.strip("[]")).is_loopback:
            raise ValueError("metrics are served in the clear and so on loopback only")
        return value

    @field_validator("otlp")
    @classmethod
    def _names(cls, value: tuple[OtlpConfig, ...]) -> tuple[OtlpConfig, ...]:
        if len({backend.name for backend in value}) < len(value):
            raise ValueError("two backends have one name")
        return value

    @model_validator(mode="after")
    def _attestors(self) -> Self:
        kinds = [attestor.kind for attestor in self.attestor]
        if len(set(kinds)) < len(kinds):
            raise ValueError("attestor: two are of one kind")
        no_vault = self.vault is None and not isinstance(self.authority, VaultAuthorityConfig)
        if "vault" in kinds and no_vault:
            raise ValueError("attestor: kind vault needs to know where Vault is: say so under [vault]")
        if self.operator_login is not None and no_vault:
            raise ValueError("operator_login needs to know where Vault is: say so under [vault]")
        return self

    @model_validator(mode="after")
    def _regions(self) -> Self:
        regions = [self.region, *(peer.region for peer in self.peer)]
        if len(set(regions)) < len(regions):
            raise ValueError("peer: each names one other region, and none of them ours")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file."""
        return env_settings, init_settings


def load(file: Path | None) -> Config:
    """Reads the configuration from a TOML file and the environment.

    Raises:
        ConfigError: the file can't be read, or a setting is missing, unknown or out of its range.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not TOML: {error}") from None
    try:
        return Config(**values)
    except ValidationError as error:
        # The input isn't shown: it may hold a secret.
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError("\n".join(f"{file or 'environment'}: {fault}" for fault in faults)) from None
