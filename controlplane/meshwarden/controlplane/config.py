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
from typing import Annotated, Any, ClassVar, Literal, Self

from cryptography import x509
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from meshwarden.certs.error import UNREADABLE
from meshwarden.controlplane.gather.header import NAME
from meshwarden.controlplane.identity.node_name import MAX_TEMPLATE, NameTemplate
from meshwarden.controlplane.identity.rate import Limits, Pace
from meshwarden.sdk.mtls.front import MAX_INNER_BYTES

TRUST_DOMAIN = r"[a-z0-9._-]{1,255}"
INNER = "inner"
REFERENCE = r"^(credential|file|env|vault|transit):.+$"
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


class ConfigError(Exception):
    """The configuration can't be used; the message names the file, the key and the reason."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DiskAuthorityConfig(_Frozen):
    """A root of our own: its key lies on disk, encrypted under a passphrase."""

    kind: Literal["disk"] = "disk"
    # A reference (`credential:`, `file:`, `env:`, `vault:`, `transit:`), never the passphrase itself.
    passphrase: str = Field(pattern=REFERENCE)
    # Left out, <state_dir>/ca. Control planes of one store share it.
    directory: Path | None = None
    # Make a new root if there is none. Without it a missing key is an error: a typo must not found a new mesh.
    create: bool = False
    # The life of each root that is made; the next is prepared at a half and activated at five sixths of it.
    root_ttl_days: int = Field(default=3650, ge=180, le=7300)


# A reference: what opens Vault can't lie in Vault.
VAULT_REFERENCE = r"^(credential|file|env):.+$"
VAULT_PATH = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"
SecretPlace = Annotated[str, Field(pattern=VAULT_PATH)]


class AppRoleConfig(_Frozen):
    """A role that logs in by itself."""

    role_id: str = Field(min_length=1)
    secret_id: str = Field(pattern=VAULT_REFERENCE)
    # The path of the auth method below auth/.
    mount: str = Field(default="approle", pattern=VAULT_PATH)


class VaultConfig(_Frozen):
    """A Vault or OpenBao server and how we log in there: by a token that somebody has made, or as an AppRole."""

    address: str = Field(pattern=r"^https?://.+$")
    token: str | None = Field(default=None, pattern=VAULT_REFERENCE)
    approle: AppRoleConfig | None = None
    ca_file: Path | None = None
    namespace: str | None = None

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        if (self.token is None) == (self.approle is None):
            raise ValueError("say how to log in: by token or by approle, and not by both")
        return self


class VaultAuthorityConfig(VaultConfig):
    """A root in Vault or OpenBao."""

    kind: Literal["vault"]
    # "upstream": it signs our issuing certificate, with which we go on while it is away. "direct": it signs each leaf.
    form: Literal["upstream", "direct"] = "upstream"
    # The path of the PKI engine.
    mount: str = Field(default="pki", pattern=VAULT_PATH)
    # The role of that engine which leaves are signed under; for "direct".
    role: str = Field(default="meshwarden", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")


class MemoryAuthorityConfig(_Frozen):
    """A root that ends with the process: for tests."""

    kind: Literal["memory"]


AuthorityConfig = Annotated[
    DiskAuthorityConfig | VaultAuthorityConfig | MemoryAuthorityConfig, Field(discriminator="kind")
]


class AttestorConfig(_Frozen):
    """How nodes prove who they are, beside join tokens."""

    FIELDS: ClassVar[tuple[str, ...]] = ()

    # The node's name, made of what is proved: "{common_name}".
    node: str = Field(max_length=MAX_TEMPLATE)
    # The tenants whose entries such nodes may serve; empty for any tenant's.
    tenants: tuple[Annotated[str, Field(pattern=f"^{LABEL}$")], ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _named(self) -> Self:
        self.template()
        return self

    def template(self) -> NameTemplate:
        """What makes the node's name.

        Raises:
            InvalidTemplate: a ValueError; it is none.
        """
        return NameTemplate(self.node, self.FIELDS)


class X509PopAttestorConfig(AttestorConfig):
    """By a certificate that the machine has already, and proof of its key."""

    FIELDS = ("common_name", "dns_label", "serial", "fingerprint")

    kind: Literal["x509pop"]
    # PEM of the authorities of such certificates; none of ours.
    ca_file: Path
    node: str = Field(default="{common_name}", max_length=MAX_TEMPLATE)

    @field_validator("ca_file")
    @classmethod
    def _readable(cls, value: Path) -> Path:
        _authorities(value)
        return value

    def roots(self) -> tuple[x509.Certificate, ...]:
        """The authorities."""
        return _authorities(self.ca_file)


class VaultAttestorConfig(AttestorConfig):
    """By a login at the Vault under [vault], or the authority's."""

    FIELDS = ("entity_name", "entity_metadata.", "alias_name", "metadata.")

    kind: Literal["vault"]
    # The auth method by which nodes log in.
    mount: str = Field(default="approle", pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")
    # The policy that makes a token a node's.
    policy: str = Field(default="meshwarden-node", pattern=r"^[A-Za-z0-9_./-]{1,128}$")
    node: str = Field(default="{metadata.role_name}", max_length=MAX_TEMPLATE)


AnyAttestorConfig = Annotated[X509PopAttestorConfig | VaultAttestorConfig, Field(discriminator="kind")]


class GrantConfig(_Frozen):
    """Whoever has the policy of Vault, by itself or by a group, or is the entity, operates so far."""

    policy: str = Field(default="", pattern=r"^[A-Za-z0-9_./-]{0,128}$")
    entity: str = Field(default="", max_length=255)
    role: Literal["viewer", "editor", "admin"]
    # Of this tenant alone; left out, of the mesh.
    tenant: str = Field(default="", pattern=f"^({LABEL})?$")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.policy) == bool(self.entity):
            raise ValueError("say who: by policy or by entity, and not by both")
        if self.policy in ("default", "root"):
            raise ValueError(f"policy {self.policy!r} is everybody's, or nobody's: make one of your own")
        return self


class OperatorLoginConfig(_Frozen):
    """Operators by a login at the Vault under [vault], or the authority's."""

    FIELDS: ClassVar[tuple[str, ...]] = ("entity_name", "entity_metadata.", "alias_name")

    # The auth methods whose logins count; "token" takes any token that has an entity.
    mounts: tuple[SecretPlace, ...] = Field(min_length=1, max_length=16)
    # The operator's name, after "vault-".
    name: str = Field(default="{alias_name}", max_length=MAX_TEMPLATE)
    # How long a login lasts.
    ttl_s: int = Field(default=3600, ge=60, le=3600)
    grants: tuple[GrantConfig, ...] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _named(self) -> Self:
        self.template()
        return self

    def template(self) -> NameTemplate:
        """What makes the operator's name.

        Raises:
            InvalidTemplate: a ValueError; it is none.
        """
        return NameTemplate(self.name, self.FIELDS)


class LimitsConfig(_Frozen):
    """How many certificates each may ask for; of each so many seconds' worth at once."""

    # From one address (of IPv6: one /64); ten seconds' worth at once.
    attests_per_address_per_s: float = Field(default=10.0, gt=0.0, le=10_000.0)
    # Of one node; forty seconds' worth at once.
    signs_per_node_per_s: float = Field(default=50.0, gt=0.0, le=10_000.0)
    # Of one tenant on all nodes; forty seconds' worth at once.
    signs_per_tenant_per_s: float = Field(default=500.0, gt=0.0, le=100_000.0)

    def paces(self) -> Limits:
        """What identity holds them to."""
        return Limits(
            attests_of_address=_pace(self.attests_per_address_per_s, 10),
            signs_of_node=_pace(self.signs_per_node_per_s, 40),
            signs_of_tenant=_pace(self.signs_per_tenant_per_s, 40),
        )


def _pace(per_s: float, seconds: int) -> Pace:
    return Pace(per_s, max(1, round(per_s * seconds)))


class OtlpConfig(_Frozen):
    """A backend that telemetry goes on to."""

    # What its queue and its counts are called by.
    name: str = Field(pattern=f"^{LABEL}$")
    # "http://host:port" or "https://host:port"; over HTTP the base to which "/v1/traces" and so on are added.
    endpoint: str = Field(pattern=r"^https?://.+$")
    protocol: Literal["grpc", "http"] = "grpc"
    # A reference to what it wants in the `authorization` header: "vault:kv/meshwarden#otlp_authorization".
    authorization: str | None = Field(default=None, pattern=REFERENCE)
    # Other headers that it wants, each a reference: { x-api-key = "file:/etc/meshwarden/key" }.
    headers: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=REFERENCE)]] = Field(
        default={}, max_length=16
    )
    # The header that tells it whose telemetry a request holds, by the tenant's name: "X-Scope-OrgID" for Tempo.
    tenant_header: str = Field(default="", pattern=f"{NAME}|^$")
    signals: tuple[Literal["traces", "metrics", "logs"], ...] = ("traces", "metrics", "logs")
    # What may wait for it on disk; beyond, the tenant that has most of it loses its oldest.
    max_queue_bytes: int = Field(default=256 << 20, ge=1 << 20)


class TailSamplingConfig(_Frozen):
    """Which traces go on to backends; without it all do."""

    # The share of those that nothing asks for; whatever failed, was refused or slow goes on in any case.
    ratio: float = Field(ge=0.0, le=1.0)
    # The same for the spans of some tenants.
    tenants: dict[Annotated[str, Field(pattern=f"^{LABEL}$")], Annotated[float, Field(ge=0.0, le=1.0)]] = {}
    # A span that takes longer is slow, and so is a call that takes longer than its service's SLO says.
    slow_s: float | None = Field(default=None, gt=0.0, le=86_400.0)
    # How long is waited for a trace that does not become complete, and how long for what comes late to one that has: a
    # second, or three where other regions may still say that they keep it.
    wait_s: float = Field(default=10.0, ge=0.1, le=600.0)
    grace_s: float | None = Field(default=None, ge=0.0, le=60.0)
    # What may wait, in memory and on disk; beyond, the oldest of the tenant that has most of it is decided on.
    max_waiting_bytes: int = Field(default=64 << 20, ge=1 << 20, le=1 << 30)


class TenantTracesConfig(_Frozen):
    """How long a tenant's recent traces are kept, and how much of them; what is left out is as of all tenants."""

    keep_s: float | None = Field(default=None, ge=60.0, le=30 * 86_400.0)
    # Beyond, it loses its oldest, however much the others have; 0: none are kept.
    max_bytes: int | None = Field(default=None, ge=0)


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('write HOST:PORT, "127.0.0.1:7443" for one')
    return value


Address = Annotated[str, AfterValidator(_address)]


class PeerConfig(_Frozen):
    """Another region, which is asked for what it has counted."""

    region: str = Field(pattern=f"^{LABEL}$")
    # Where its control plane listens, "HOST:PORT".
    address: Address


class SpiffeEndpointConfig(_Frozen):
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

    trust_domain: str = Field(pattern=f"^{TRUST_DOMAIN}$")
    region: str = Field(default="default", pattern=f"^{LABEL}$")
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
    authority: AuthorityConfig
    # How nodes may prove who they are, beside join tokens; one of a kind.
    attestor: tuple[AnyAttestorConfig, ...] = ()
    # Whom a token of Vault lets operate; left out, nobody.
    operator_login: OperatorLoginConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    # Where telemetry goes on to.
    otlp: tuple[OtlpConfig, ...] = ()
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


def _authorities(file: Path) -> tuple[x509.Certificate, ...]:
    """Reads the certificates of authorities from a PEM file.

    Raises:
        ValueError: it can't be read, holds none, or one that is no authority's.
    """
    try:
        found = tuple(x509.load_pem_x509_certificates(file.read_bytes()))
        authorities = all(one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for one in found)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise ValueError(f"{file}: not certificates of authorities in PEM") from None
    if not authorities:
        raise ValueError(f"{file}: has a certificate that is no authority's")
    return found


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
