"""What an agent is told: a TOML file, then the environment (`MESHWARDEN_AGENT_…`), read once at start.

    node = "node-a"
    control_plane = "mesh.example:7443"
    trust_domain = "mesh.example"
    ca_file = "/etc/meshwarden/ca.pem"
    join_token_file = "/etc/meshwarden/join-token"
    state_dir = "/var/lib/meshwarden-agent"

`ConfigError` says which key is wrong and why.
"""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from meshwarden.agents.proof.port import Proof
from meshwarden.agents.proof.token import TokenProof
from meshwarden.agents.proof.vault import VaultProof
from meshwarden.agents.proof.vault_http import VaultHttp
from meshwarden.agents.proof.x509pop import PossessionProof

_LABEL: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_MAX_SOCKET_PATH: Final = 107  # sizeof(sun_path) - 1; unix(7)


class ConfigError(Exception):
    """The configuration can't be used; the message names the file, the key and the reason."""


def _host_port(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError("say HOST:PORT, with an IPv6 address in brackets")
    return text


def _loopback(text: str) -> str:
    host = _host_port(text).rpartition(":")[0].strip("[]")
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError("metrics are served in the clear and so on loopback only: say 127.0.0.1:PORT")
    return text


def _vault_address(text: str) -> str:
    parts = urlsplit(text)
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ValueError("say https://HOST:PORT")
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in ("localhost", "127.0.0.1", "::1")):
        raise ValueError("say https://HOST:PORT: otherwise the login would travel in the clear")
    return text.rstrip("/")


def _ip(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _socket(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("say an absolute path")
    if len(bytes(path)) > _MAX_SOCKET_PATH:
        raise ValueError(f"a Unix socket's path has at most {_MAX_SOCKET_PATH} bytes, this has {len(bytes(path))}")
    return path


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class X509PopConfig(_Frozen):
    """Attests by a certificate that the machine has already.

    Attributes:
        certificate_file: it and its intermediates, PEM.
        key_file: its key, PEM, without a password, not open to every user.
    """

    kind: Literal["x509pop"]
    certificate_file: Path
    key_file: Path

    def proof(self) -> Proof:
        """What the node shows."""
        return PossessionProof(self.certificate_file, self.key_file)


class VaultConfig(_Frozen):
    """Attests by a login at Vault or OpenBao, in one of three ways.

    Attributes:
        token_file: a token that somebody else keeps fresh, such as Vault's own agent.
        wrapped_token_file: the wrapping token of a login, which is used up.
        role_id: an AppRole; with `secret_id_file`.
        secret_id_file: its secret.
        mount: the path of the AppRole method.
        address: Vault's, for all but `token_file`; https, or http on loopback.
        ca_file: the authorities of its certificate, PEM; left out, the system's.
        namespace: where the login is.
    """

    kind: Literal["vault"]
    token_file: Path | None = None
    wrapped_token_file: Path | None = None
    role_id: str | None = Field(default=None, min_length=1, max_length=255)
    secret_id_file: Path | None = None
    mount: str = Field(default="approle", pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")
    address: Annotated[str, AfterValidator(_vault_address)] | None = None
    ca_file: Path | None = None
    namespace: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_./-]{1,255}$")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.token_file, self.wrapped_token_file, self.role_id or self.secret_id_file]
        if sum(way is not None for way in ways) != 1:
            raise ValueError("say one of token_file, wrapped_token_file, and role_id with secret_id_file")
        if (self.role_id is None) != (self.secret_id_file is None):
            raise ValueError("role_id and secret_id_file go together")
        if self.token_file is None and self.address is None:
            raise ValueError("say Vault's address, where to log in")
        return self

    def proof(self) -> Proof:
        """What the node shows."""
        return VaultProof(
            VaultHttp(self.address, self.ca_file, self.namespace) if self.address else None,
            token_file=self.token_file,
            wrapped_token_file=self.wrapped_token_file,
            role_id=self.role_id or "",
            secret_id_file=self.secret_id_file,
            mount=self.mount,
        )


AttestConfig = Annotated[X509PopConfig | VaultConfig, Field(discriminator="kind")]


class AgentConfig(BaseSettings):
    """All that an agent is told.

    Attributes:
        node: the node's name, which the join token must be for.
        control_plane: `host:port`.
        control_planes: several of one mesh in its place, on one store, the preferred first.
        ca_file: the trust domain's roots, PEM; what the first connection trusts.
        trust_domain: the one to join.
        join_token_file: a one-time token, needed until the node has its identity.
        attest: how the node proves who it is instead, each time it has to.
        state_dir: identity and cache, ours alone; one agent at a time.
        agent_socket: serves xDS, reports and OTLP; default `<state_dir>/run/agent.sock`.
        workload_api_socket: serves the SPIFFE Workload API; default `<state_dir>/run/workload-api.sock`.
        otlp_http_socket: serves OTLP over HTTP; default `<state_dir>/run/otlp.sock`.
        otlp_grpc_listen: serves OTLP over gRPC to programs with a token, `host:port` on loopback; left out, nowhere.
        otlp_http_listen: serves OTLP over HTTP to programs with a token, `host:port` on loopback; left out, nowhere.
        advertise_address: the IP address where the mesh reaches this node's workloads.
        zone: where the node is, within its region.
        envoy_concurrency: worker threads of each Envoy.
        spool_bytes: what reports that wait for the control plane may take on disk.
        spool_tenant_bytes: what those of one tenant may take of it.
        telemetry_bytes_per_s: what the programs of one tenant may send by OTLP in the long run.
        telemetry_items_per_s: how many spans, points and records of logs that may be.
        metrics_listen: where Prometheus scrapes the agent and its Envoys, `host:port` on loopback, in the clear; left
            out, nowhere.
        metrics_advertise: where the control plane tells Prometheus to do so, for who has a proxy of their own in front;
            default `metrics_listen`.
    """

    model_config = SettingsConfigDict(env_prefix="MESHWARDEN_AGENT_", extra="forbid", frozen=True)

    node: str = Field(pattern=_LABEL)
    control_plane: Annotated[str, AfterValidator(_host_port)] | None = None
    control_planes: tuple[Annotated[str, AfterValidator(_host_port)], ...] = Field(default=(), max_length=16)
    ca_file: Path
    trust_domain: str = Field(pattern=r"^[a-z0-9._-]{1,255}$")
    join_token_file: Path | None = None
    attest: AttestConfig | None = None
    state_dir: Path
    agent_socket: Annotated[Path, AfterValidator(_socket)] = Path("/")
    workload_api_socket: Annotated[Path, AfterValidator(_socket)] = Path("/")
    otlp_http_socket: Annotated[Path, AfterValidator(_socket)] = Path("/")
    otlp_grpc_listen: Annotated[str, AfterValidator(_loopback)] | None = None
    otlp_http_listen: Annotated[str, AfterValidator(_loopback)] | None = None
    advertise_address: Annotated[str, AfterValidator(_ip)] = "127.0.0.1"
    zone: str = Field(default="", max_length=63)
    envoy_concurrency: int = Field(default=1, ge=1, le=256)
    spool_bytes: int = Field(default=256 << 20, ge=8 << 20)
    spool_tenant_bytes: int = Field(default=64 << 20, ge=8 << 20)
    telemetry_bytes_per_s: int = Field(default=8 << 20, ge=1024)
    telemetry_items_per_s: int = Field(default=50_000, ge=1)
    metrics_listen: Annotated[str, AfterValidator(_loopback)] | None = None
    metrics_advertise: Annotated[str, AfterValidator(_host_port)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _place_sockets(cls, values: Any) -> Any:
        """Fills in the sockets that are not said."""
        if isinstance(values, dict) and isinstance(values.get("state_dir"), str | Path):
            run = Path(values["state_dir"]).absolute() / "run"
            values.setdefault("agent_socket", run / "agent.sock")
            values.setdefault("workload_api_socket", run / "workload-api.sock")
            values.setdefault("otlp_http_socket", run / "otlp.sock")
        return values

    @model_validator(mode="after")
    def _some_control_plane(self) -> Self:
        if (self.control_plane is None) == (not self.control_planes):
            raise ValueError("say control_plane, or control_planes = [...] if there are several: one of the two")
        if len(set(self.control_planes)) < len(self.control_planes):
            raise ValueError("control_planes: one is said twice")
        return self

    @model_validator(mode="after")
    def _one_proof(self) -> Self:
        if self.attest is not None and self.join_token_file is not None:
            raise ValueError("say join_token_file or [attest], not both")
        return self

    @model_validator(mode="after")
    def _three_sockets(self) -> Self:
        if len({self.agent_socket, self.workload_api_socket, self.otlp_http_socket}) < 3:
            raise ValueError("agent_socket, workload_api_socket and otlp_http_socket are three: two have one path")
        return self

    @model_validator(mode="after")
    def _advertise_what_is_served(self) -> Self:
        if self.metrics_advertise and not self.metrics_listen:
            raise ValueError("metrics_advertise is said and metrics_listen is not: nothing would be served there")
        return self

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *sources: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file."""
        return (named["env_settings"], init_settings)

    def proof(self) -> Proof:
        """How the node proves who it is."""
        return self.attest.proof() if self.attest is not None else TokenProof(self.node, self.join_token_file)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the control plane is, the preferred first."""
        return self.control_planes if self.control_plane is None else (self.control_plane,)

    @property
    def run_dir(self) -> Path:
        """Where the agent's socket is; workloads' own directories lie beside it, since their users must reach both."""
        return self.agent_socket.parent


def load(path: Path) -> AgentConfig:
    """Reads the configuration.

    Raises:
        ConfigError: the file cannot be read, or a key is missing, unknown or wrong.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return AgentConfig(**content)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'config'}: {fault['msg']}" for fault in error.errors()
        ]
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults)) from None
