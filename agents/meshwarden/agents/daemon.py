"""Puts the agent together and runs it: the one file that knows all its parts.

The control plane's word comes down through `Upstream` into the registry, the scopes and the credentials; programs reach
these through two sockets, one front and one gRPC server; what data planes report goes up again.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

import anyio
import grpc
import structlog
from anyio.abc import TaskGroup

from meshwarden.agents.api.overload import overload
from meshwarden.agents.api.secret_stream import SecretStream
from meshwarden.agents.api.workload import Parts, WorkloadService
from meshwarden.agents.attend import Attendants
from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.agents.attestation.refusal import Refusals
from meshwarden.agents.cache import Cache
from meshwarden.agents.channel import ControlPlane
from meshwarden.agents.config import AgentConfig
from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.identity.denied import DenyKeeper
from meshwarden.agents.identity.jwt_svids import JwtSvids
from meshwarden.agents.identity.node import NodeIdentity
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.proof.port import Proof
from meshwarden.agents.quota.envoy import EnvoyQuotas
from meshwarden.agents.quota.points import Points
from meshwarden.agents.report.concurrency import Concurrencies
from meshwarden.agents.report.health import Health
from meshwarden.agents.report.metrics import AgentMetrics
from meshwarden.agents.report.progress import Progress, Reports
from meshwarden.agents.report.question import Questions
from meshwarden.agents.report.root_ack import RootAck
from meshwarden.agents.report.rotation import Rotation
from meshwarden.agents.report.status import Status
from meshwarden.agents.report.way import Node
from meshwarden.agents.seal import given_secret
from meshwarden.agents.session import Downstream
from meshwarden.agents.start import Begun
from meshwarden.agents.state import Memory, Place
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.budget import Rate
from meshwarden.agents.telemetry.door import Door
from meshwarden.agents.telemetry.intake import Intake
from meshwarden.agents.telemetry.locality import Localities
from meshwarden.agents.telemetry.name import Names
from meshwarden.agents.telemetry.outbox import Outbox
from meshwarden.agents.telemetry.receive import Receiver
from meshwarden.agents.telemetry.spool import Spool, SpoolLimits
from meshwarden.agents.telemetry.token import Tokens
from meshwarden.agents.upstream import Upstream
from meshwarden.agents.workload.attest import Attestor
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.agents.workload.leaving import LeaveStream, Leaving
from meshwarden.agents.workload.planes import Planes
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.secret import Secrets
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.workload_api.jwt import JwtProfile
from meshwarden.agents.workload_api.service import WorkloadApi
from meshwarden.agents.xds.data_plane import DataPlanes
from meshwarden.agents.xds.in_force import InForce, RevisionAt
from meshwarden.agents.xds.interest import Interest
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.sdk.edge import EdgeInterceptor
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.scrape import serve_pages
from meshwarden.sdk.tracing.own_span import server_interceptor
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import workload_service_pb2_grpc as workload_grpc
from meshwarden.xds.server import add_ads

_log = structlog.get_logger()
VERSION: Final = version("meshwarden")
_MAX_MESSAGE_BYTES: Final = 4 << 20
_MAX_STREAMS: Final = 256  # of one connection; gRPC has one for each target of a process
_GRACE_S: Final = 0.5
_REVIEW_S: Final = 0.1
_LAST_REPORT_S: Final = 2.0
_SAVE_S: Final = 5.0
_LOOK_S: Final = 1.0
# Somebody waits for it, and there are few.
_TRACED_BELOW: Final = frozenset({"/meshwarden.v1.WorkloadService/Register"})

Clock = Callable[[], datetime]


class Agent:
    """All parts of one agent. `run` serves until it is cancelled."""

    def __init__(
        self,
        config: AgentConfig,
        place: Place,
        control_plane: ControlPlane,
        identity: NodeIdentity,
        proof: Proof,
        clock: Clock,
        rng: random.Random,
        begun: Begun,
    ) -> None:
        """Puts the parts together from what the disk holds; `identity` must be somebody, and attests by `proof` again.

        `begun` is what was traced before, which the start goes on with.
        """
        self._config, self._place, self._identity, self._clock = config, place, identity, clock
        self._rng, self._begun, self._provider = rng, begun, begun.provider
        self._cache = cache = Cache(place.cache, given_secret(os.environ.get("CREDENTIALS_DIRECTORY")))
        self._memory = Memory(cache)
        self._refusals = Refusals(clock)
        self.registry = Registry(config.trust_domain, place.workloads, Evidence(), self._refusals)
        self.scopes = ScopeStore(cache, clock)
        self.denied = DenyKeeper(cache)
        self.secrets, self._leaving = Secrets(), Leaving()
        self._answers: DataPlanes | None = None
        self._put_session_together(control_plane, proof)
        self.concurrencies = Concurrencies(time.monotonic)
        self._put_certificates_together()
        self._put_workloads_together()
        self._put_river_together()
        self._put_report_together()

    def _put_session_together(self, control_plane: ControlPlane, proof: Proof) -> None:
        """Makes the way up, what comes down by it, and what asks for shares of limits there."""
        config = self._config
        downstream = Downstream(
            self._take_entries,
            self._take_bundle,
            lambda bundles: self.trust.take(bundles),
            self._take_config,
            self._renew,
            lambda serial: self._rotation.welcomed(serial),
            self._take_denied,
            self.secrets.take,
            lambda question: self._questions.ask(question),
        )
        self._progress = Progress(self._provider)
        self.upstream = Upstream(
            control_plane,
            self._identity,
            proof,
            downstream,
            self._clock,
            self._rng,
            held=self.scopes.held,
            zone=config.zone,
            version=VERSION,
            metrics_address=config.metrics_advertise or config.metrics_listen or "",
            renewing=lambda: self._rotation.renewing_node(),
        )
        self.points = Points(self.upstream, time.monotonic, self._rng)

    def _put_certificates_together(self) -> None:
        """Makes what has certificates signed, what else is trusted, and what follows both to the workloads."""
        cache, identity = self._cache, self._identity
        trust = self.trust = Trust(cache, self._config.trust_domain)
        self.credentials = Credentials(
            self.registry, cache, identity.present.bundle, self._sign, self._clock, self._rng, trust
        )
        self.jwt_svids = JwtSvids(self.upstream.sign_jwt, self._clock)
        self.trust.listen(lambda: self.jwt_svids.leave(self.trust.forsaken))
        self._root_ack = RootAck(identity, self.registry, self.credentials, time.monotonic, self.trust.own_jwt_keys)
        self._rotation = Rotation(
            self._provider,
            Node(
                self.registry,
                self.credentials,
                lambda: identity.present.svid.serial,
                lambda: self.health.errors(),
            ),
        )
        identity.listen(self._rotation.look)

    def _put_workloads_together(self) -> None:
        """Makes what looks after workloads, and what is asked for and said of their data planes."""
        config, identity = self._config, self._identity
        self._node_place = NodePlace(
            config.node, identity.present.region, config.zone, config.agent_socket, config.workload_api_socket
        )
        self.planes = Planes(self._cache, config.advertise_address, self._rng)
        self.interest = Interest(self.planes.refs, self.registry, self.upstream.set_interest)
        self.attendants = Attendants(
            self.registry,
            self.planes,
            self._node_place,
            self.credentials,
            Reports(self._provider, self._rotation.present, self.upstream.set_endpoints),
            self._leaving,
            self._clock,
            self._rng,
            address=config.advertise_address,
            concurrency=config.envoy_concurrency,
        )
        self._questions = Questions(self.attendants.admin_sockets, lambda: self._answers, self.upstream.answer)

    def _put_river_together(self) -> None:
        """Makes what takes telemetry in, keeps it on the disk, and hands it up."""
        config = self._config
        bounds = SpoolLimits(config.spool_bytes, config.spool_tenant_bytes)
        self.spool = Spool(self._place.spool, lambda: self._rng.randbytes(16), bounds)
        self.outbox = Outbox(self.spool, self.upstream.export)
        names, localities = Names(self.registry, self.scopes), Localities(self.registry, self.scopes)
        aggregator = Aggregator(self._clock, names.find, localities.region)
        rate = Rate(config.telemetry_bytes_per_s, config.telemetry_items_per_s)
        self.intake = Intake(
            self._node_place, aggregator, self.spool, lambda: self.scopes.revision, rate, self.registry.speakers
        )
        tokens = Tokens.load(self._cache, self.registry, self._rng.randbytes(32))
        self.door = Door(config, self._place.inner / "h", self.registry, self.intake, tokens)

    def _put_report_together(self) -> None:
        """Makes what says how the agent and its node do."""
        self.health = Health(
            self._config.state_dir,
            self.registry,
            self._identity,
            self.upstream,
            self.credentials,
            self.scopes,
            self.attendants,
            self._cache,
            self.spool,
            self._refusals,
            self.secrets,
        )
        self.status = Status(
            self._config.node,
            VERSION,
            self.registry,
            self.credentials,
            self.scopes,
            self.upstream,
            self.attendants,
            self.health,
            self._refusals,
        )

    async def run(self) -> None:
        """Serves until it is cancelled."""
        self._memory.recall(self.registry, self._place.workloads)
        self.registry.listen(self._registry_changed)
        self.credentials.listen(self._tell_workloads)
        self._registry_changed()
        self._rotation.begin_start(self._begun.end(self.intake.take_own_spans))
        try:
            async with (
                anyio.create_task_group() as outer,
                self._connected(outer),
                self._serving(),
                self.door.open(),
                self._scraped(),
                anyio.create_task_group() as group,
            ):
                group.start_soon(self.credentials.run)
                group.start_soon(self.jwt_svids.run)
                group.start_soon(self.scopes.run)
                group.start_soon(self.attendants.run)
                group.start_soon(self.outbox.run)
                group.start_soon(self.points.run)
                group.start_soon(self._questions.run)
                group.start_soon(self._review)
                group.start_soon(self._look)
                group.start_soon(self._save_rest)
                _log.info(
                    "agent ready",
                    agent_socket=str(self._config.agent_socket),
                    workload_api_socket=str(self._config.workload_api_socket),
                    workloads=len(self.registry.workloads),
                )
        finally:
            self._rotation.close()
            self._memory.keep_workloads(self.registry)
            self.registry.close()
            self.spool.close()
            with contextlib.suppress(OSError):
                self.scopes.flush()

    @contextlib.asynccontextmanager
    async def _connected(self, group: TaskGroup) -> AsyncIterator[None]:
        """The way up, which outlives all else: what is reported until the end shall still go up."""
        scope = anyio.CancelScope(shield=True)

        async def stay() -> None:
            with scope:
                await self.upstream.run()

        group.start_soon(stay)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self.outbox.flush(_LAST_REPORT_S)
            scope.cancel()

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        front = Front(self._place.inner / "s")
        attestor = Attestor(front, self.registry)
        self._overload = overload(attestor, self.intake, self._rng.random)
        server = grpc.aio.server(
            interceptors=[self._overload, server_interceptor(self._provider, _TRACED_BELOW), EdgeInterceptor()],
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._add_services(server, attestor)
        server.add_insecure_port(front.inner_target)
        await server.start()
        try:
            await front.serve_unix(self._config.agent_socket, 0o666)
            await front.serve_unix(self._config.workload_api_socket, 0o666)
            yield
        finally:
            # Streams of data planes never end by themselves; what is being answered gets a moment.
            with anyio.CancelScope(shield=True):
                await server.stop(_GRACE_S)
                await front.aclose()

    @contextlib.asynccontextmanager
    async def _scraped(self) -> AsyncIterator[None]:
        listen = self._config.metrics_listen
        if listen is None:
            yield
            return
        metrics = AgentMetrics(
            self.status.read,
            self.spool.sizes,
            lambda: self._identity.present.svid.not_after,
            self.points,
            self.concurrencies,
            self._overload,
            self._clock,
        )
        host, _, port = listen.rpartition(":")
        async with serve_pages(host.strip("[]"), int(port), metrics.find):
            yield

    def _add_services(self, server: grpc.aio.Server, attestor: Attestor) -> None:
        in_force = InForce(self._clock)
        self._answers = planes = DataPlanes(
            attestor,
            self.registry,
            self.scopes,
            self.credentials,
            self.attendants.envoy_pid,
            self._acknowledge,
            self.interest,
            in_force,
            self.secrets,
            self._leaving,
        )
        leave = LeaveStream(attestor, self._leaving, lambda data_plane: data_plane not in planes.waiting())
        parts = Parts(
            attestor,
            self.registry,
            self.credentials,
            self.attendants,
            self.scopes,
            self.denied,
            self.intake,
            self.points,
            self.concurrencies,
            self.door.environment,
            self.status.read,
            self._rotation.wanting,
            SecretStream(attestor, self.registry, self.secrets),
            leave,
            self.interest.attend,
            self._node_place.region,
        )
        workload_grpc.add_WorkloadServiceServicer_to_server(WorkloadService(parts), server)
        jwt = JwtProfile(self.jwt_svids, self.trust, lambda: self.denied.present, self._clock)
        WorkloadApi(attestor, self.registry, self.credentials, self.trust, jwt).add_to(server)
        self.health.watch(planes, self.intake.clear)
        self._rotation.watch(planes)
        planes.watch(self._rotation.look)
        planes.watch(leave.look)
        add_ads(server, planes)
        EnvoyQuotas(attestor, self.points, self.scopes.limits).add_to(server)

        def revisions(context: grpc.aio.ServicerContext[Any, Any], workload: Workload) -> RevisionAt | None:
            is_envoy = attestor.connection(context.peer()).pid == self.attendants.envoy_pid(workload.id)
            return in_force.of(f"{workload.id}/envoy") if is_envoy else None

        Receiver(lambda context: attestor.find(context.peer()), self.intake, revisions).add_to(server)

    # -- what comes down

    def _take_entries(self, entry_set: node_pb.EntrySet) -> None:
        self.registry.set_entries(entry_set)
        self.secrets.keep(f"{item.metadata.tenant}/{item.metadata.name}" for item in entry_set.entries)
        self._memory.keep_entries(entry_set)

    def _take_bundle(self, message: node_pb.Bundle) -> None:
        try:
            bundle = Bundle.from_proto(message)
            if bundle.roots != self.credentials.bundle().roots:
                self._rotation.begin_trust(message.trace_parent)
            self.credentials.set_bundle(bundle)
        except InvalidBundle as error:
            _log.error("bundle refused", reason=str(error))
            return
        self._identity.set_bundle(bundle)

    def _take_config(self, update: node_pb.ConfigUpdate) -> None:
        self._progress.begin(update)
        self.scopes.apply(update)
        self._rotation.configured()

    def _take_denied(self, message: node_pb.DenyList) -> None:
        revision = self.denied.take(message)
        if revision is not None:
            self.upstream.ack_denied(revision)
            self.credentials.renew_denied(self.denied.present)

    def _renew(self, order: node_pb.RenewNow) -> None:
        self._rotation.begin_renewal(order.trace_parent)
        self.credentials.renew_now(order.reason)
        self.upstream.renew_now()

    # -- what goes up

    async def _sign(self, requests: list[node_pb.WorkloadCsr]) -> Sequence[node_pb.SignedWorkload]:
        with self._rotation.signing({f"{request.tenant}/{request.entry}" for request in requests}):
            return await self.upstream.sign(requests)

    def _registry_changed(self) -> None:
        self.jwt_svids.forget(self.registry.entries.keys())
        self.interest.tell()
        self._tell_workloads()
        self._memory.keep_workloads(self.registry)

    def _tell_workloads(self) -> None:
        self.upstream.set_workloads(self.status.workloads())

    def _acknowledge(self, ack: node_pb.ConfigAck) -> None:
        self.status.ack = ack
        self._progress.end(ack)
        self.upstream.ack(ack)

    async def _review(self) -> None:
        """Sees registered processes become the programs that their entries want."""
        while True:
            await asyncio.sleep(_REVIEW_S)
            await self.registry.learn_registered()
            self.registry.review()

    async def _look(self) -> None:
        """Tells the control plane of what goes wrong by itself."""
        while True:
            self._tell_workloads()
            self.upstream.set_health(self.health.read())
            self.upstream.set_root_ack(self._root_ack.look(self._answers))
            if self._answers is not None:
                self._answers.tell_pending()
            self._rotation.look()
            await asyncio.sleep(_LOOK_S)

    async def _save_rest(self) -> None:
        """Saves what a full disk has refused, when there is room again."""
        while True:
            await asyncio.sleep(_SAVE_S)
            self._cache.save_rest()
            self._identity.save_rest()
