"""Where everything of a local mesh is: directories, sockets, addresses. Decided before anything is started."""

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshwarden.controlplane.local.context import xdg_directory
from meshwarden.controlplane.local.error import LocalError

# What a region's own directory is called, where there are several.
REGIONS = "region-"
NODES = {"node-a": "a", "node-b": "b"}
# The name of the one region where none is given.
REGION = "local"
# Who tries a backend out does not want to wait for a minute.
OTLP_INTERVAL_S = 10
# sun_path holds 108 bytes with its NUL; the rest is room for what agents add in later versions.
SOCKET_BYTES = 100
# The longest name that a part puts below the state directory: an agent's sockets, and a workload's below its own.
LONGEST_SOCKET = "node-a/run/workloads/0123456789ab/envoy/outbound"


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        state_dir: holds all that the mesh writes.
        trust_domain: of the mesh.
        vault: whether the root is in an OpenBao beside it.
        vault_form: who signs leaves there: "upstream", the control plane below that root, or "direct", OpenBao.
        vault_away: whether that OpenBao is stopped while the checks run.
        samples: the sets of sample workloads that run; none for the bare mesh.
        check: whether the checks run, and then the mesh ends.
        json: whether stdout is for programs.
        for_s: after how many seconds it ends by itself; None for never.
        listen: where the control plane listens, "HOST:PORT".
        metrics_listen: where it serves metrics, "HOST:PORT".
        otlp_endpoint: where traces go on to, "http://HOST:PORT"; None for nowhere.
        tail_ratio: which share of them, of those that nothing asks for, from 0 to 1; None for all.
        regions: their names.
        reach: where the other regions reach one, {region: "HOST:PORT"}; else where it listens.
    """

    state_dir: Path
    trust_domain: str = "mesh.test"
    vault: bool = False
    vault_form: str = "upstream"
    vault_away: bool = False
    samples: tuple[str, ...] = ("shop",)
    check: bool = False
    json: bool = False
    for_s: float | None = None
    listen: str = "127.0.0.1:0"
    metrics_listen: str = "127.0.0.1:0"
    otlp_endpoint: str | None = None
    tail_ratio: float | None = None
    regions: tuple[str, ...] = (REGION,)
    reach: Mapping[str, str] = field(default_factory=dict)

    def plans(self) -> list["Plan"]:
        """The files of each region."""
        return [Plan(self.state_dir, region, is_only=len(self.regions) == 1) for region in self.regions]


@dataclass(frozen=True)
class AgentPlan:
    """One agent's files.

    Attributes:
        node: its node.
        zone: where that is.
        directory: holds its files.
        name: of its process and its log.
    """

    node: str
    zone: str
    directory: Path
    name: str

    @property
    def agent_socket(self) -> Path:
        """Serves workloads."""
        return self.directory / "run" / "agent.sock"

    @property
    def workload_api_socket(self) -> Path:
        """Serves the SPIFFE Workload API."""
        return self.directory / "run" / "workload-api.sock"

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.directory / "agent.toml"

    @property
    def token(self) -> Path:
        """Its join token."""
        return self.directory / "join-token"


@dataclass(frozen=True)
class Plan:
    """The files of one region, all below the mesh's state directory.

    Attributes:
        state_dir: the mesh's.
        region: the region's name.
        is_only: whether the mesh has no other. Else what is its own lies one directory further down.
    """

    state_dir: Path
    region: str = REGION
    is_only: bool = True

    @property
    def directory(self) -> Path:
        """Holds what is the region's own."""
        return self.state_dir if self.is_only else self.state_dir / f"{REGIONS}{self.region}"

    def named(self, name: str) -> str:
        """The name of a process of this region, and of its log and its port."""
        return name if self.is_only else f"{name}-{self.region}"

    @property
    def up_json(self) -> Path:
        """Says where everything is, for anyone's own tools."""
        return self.state_dir / "up.json"

    @property
    def logs(self) -> Path:
        """Holds `<name>.log` of each child."""
        return self.state_dir / "logs"

    @property
    def server(self) -> Path:
        """The control plane's state directory."""
        return self.directory / "server"

    @property
    def server_config(self) -> Path:
        """The control plane's configuration."""
        return self.directory / "server.toml"

    @property
    def server_json(self) -> Path:
        """Says where the control plane listens, once it does."""
        return self.server / "server.json"

    @property
    def operator(self) -> Path:
        """Holds the operator's certificate: tls.crt, tls.key, ca.crt."""
        return self.directory / "operator"

    @property
    def passphrase(self) -> Path:
        """Opens the embedded authority's root key, and what is kept for a start without OpenBao."""
        return self.state_dir / "ca-passphrase"

    @property
    def vault(self) -> Path:
        """OpenBao's directory."""
        return self.state_dir / "vault"

    @property
    def lock(self) -> Path:
        """Held by the `up` that runs here."""
        return self.state_dir / "up.lock"

    @property
    def agents(self) -> tuple[AgentPlan, ...]:
        """The agents, one a node."""
        return tuple(self.agent(node) for node in NODES)

    def agent(self, node: str) -> AgentPlan:
        """The agent of a node."""
        return AgentPlan(node, NODES[node], self.directory / node, self.named(f"agent-{node}"))


def default_state_dir(vault: bool) -> Path:
    """`${XDG_STATE_HOME:-~/.local/state}/meshwarden/up`; a mesh rooted in Vault is another one, beside it.

    Raises:
        LocalError: there is no home directory.
    """
    return xdg_directory("XDG_STATE_HOME", ".local/state") / "meshwarden" / ("up-vault" if vault else "up")


def refuse_unfit(options: Options) -> None:
    """Stops at once where a mesh can't run.

    Raises:
        LocalError: this is no Linux, the Python is too old, or the state directory's path is too long for sockets.
    """
    if not sys.platform.startswith("linux"):
        raise LocalError(
            f"Meshwarden runs on Linux; this is {sys.platform}",
            "run it on a Linux machine or in a Linux VM: it asks the kernel who its callers are",
        )
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs a checkout by hand has any Python
        raise LocalError(
            f"Meshwarden needs Python 3.11 or newer; this is {sys.version.split()[0]}", "make the venv with a newer one"
        )
    longest = max(len(os.fsencode(plan.directory / LONGEST_SOCKET)) for plan in options.plans())
    if longest > SOCKET_BYTES:
        raise LocalError(
            f"{options.state_dir}: too long by {longest - SOCKET_BYTES} bytes: Unix sockets below it would have "
            f"paths of more than {SOCKET_BYTES} bytes",
            "give a shorter one: meshwarden up --state-dir /tmp/mw",
        )


def refuse_another(plan: Plan, options: Options) -> None:
    """Stops where the directory holds another mesh, whose nodes would not trust this one's root.

    Raises:
        LocalError: it has another trust domain, or its root is elsewhere.
    """
    if not any((agent.directory / "identity").exists() for agent in plan.agents):
        return  # nobody has joined it
    try:
        said = tomllib.loads(plan.server_config.read_text())
        domain, is_vault = str(said["trust_domain"]), said["authority"]["kind"] == "vault"
    except (OSError, ValueError, KeyError, TypeError):
        return
    if (domain, is_vault) != (options.trust_domain, options.vault):
        root = "in OpenBao" if is_vault else "embedded"
        raise LocalError(
            f"{plan.state_dir}: holds the mesh of trust domain {domain}, whose root is {root}",
            f"start that one: {'with' if is_vault else 'without'} --vault, --trust-domain {domain}; "
            "or another: meshwarden up --state-dir DIR",
        )


def server_toml(
    plan: Plan,
    trust_domain: str,
    listen: Mapping[str, str],
    otlp_endpoint: str | None,
    vault: Mapping[str, str] | None,
    peers: Mapping[str, str] | None = None,
    tail_ratio: float | None = None,
) -> str:
    """Returns the control plane's configuration as TOML.

    Args:
        plan: where things are.
        trust_domain: of the mesh.
        listen: `listen` and `metrics_listen`.
        otlp_endpoint: where telemetry goes on to.
        vault: address, token (a reference), mount and form; None for the embedded authority.
        peers: where the other regions are reached, {region: "HOST:PORT"}.
        tail_ratio: see `Options`.
    """
    settings: dict[str, str | bool | int] = {
        "trust_domain": trust_domain,
        "region": plan.region,
        "state_dir": str(plan.server),
        "operator_directory": str(plan.operator),
        **listen,
    }
    if otlp_endpoint is not None:
        settings["otlp_metrics_interval_s"] = OTLP_INTERVAL_S
    passphrase = f"file:{plan.passphrase}"
    authority: dict[str, str | bool] = {"kind": "disk", "passphrase": passphrase, "create": True}
    if vault is not None:
        authority = {"kind": "vault", "passphrase": passphrase, **vault}
        settings["jwt_passphrase"] = passphrase
    text = toml(settings) + "\n[authority]\n" + toml(authority)
    if otlp_endpoint is not None:
        backend = {"name": "check", "endpoint": otlp_endpoint}
        if vault is not None:
            backend["authorization"] = "vault:kv/meshwarden#otlp_authorization"
        text += "\n[[otlp]]\n" + toml(backend)
    if tail_ratio is not None:
        text += "\n[tail_sampling]\n" + toml({"ratio": tail_ratio})
    for region, address in (peers or {}).items():
        text += "\n[[peer]]\n" + toml({"region": region, "address": address})
    return text


def agent_toml(agent: AgentPlan, trust_domain: str, control_plane: str, ca_file: Path, metrics_listen: str) -> str:
    """Returns an agent's configuration as TOML."""
    return toml(
        {
            "node": agent.node,
            "zone": agent.zone,
            "trust_domain": trust_domain,
            "control_plane": control_plane,
            "ca_file": str(ca_file),
            "join_token_file": str(agent.token),
            "state_dir": str(agent.directory),
            "agent_socket": str(agent.agent_socket),
            "workload_api_socket": str(agent.workload_api_socket),
            "advertise_address": "127.0.0.1",
            "metrics_listen": metrics_listen,
        }
    )


def toml(settings: Mapping[str, str | bool | int | float]) -> str:
    """Writes one table. Source: TOML 1.0, basic strings."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in settings.items())


def _value(value: str | bool | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    # A path may hold anything but NUL: what is no plain character is written by its number.
    plain = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in value)
    return f'"{"".join(plain)}"'
