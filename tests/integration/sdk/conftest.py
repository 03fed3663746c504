"""A mesh as small as can be: real certificates, a real ADS server and a WorkloadService, one socket per workload.

Programs run as processes of their own, since gRPC reads its bootstrap once. What a control plane and an agent would
decide, the tests say.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from tests.counted import stats_of

from meshwarden.agents.workload import credential_files
from meshwarden.agents.workload.bootstrap import NodePlace, environment, grpc_bootstrap, write_grpc_bootstrap
from meshwarden.agents.workload.leaving import without_callers
from meshwarden.certs import issue, svid
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import publish
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.grpc import client as client_dialect
from meshwarden.controlplane.policy.grpc import server as server_dialect
from meshwarden.controlplane.policy.mesh import Mesh as Declared
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Caller, Name
from meshwarden.controlplane.policy.variant import Kind, Variant
from meshwarden.v1 import (
    node_service_pb2,
    quota_service_pb2,
    report_pb2,
    resources_pb2,
    workload_service_pb2,
    workload_service_pb2_grpc,
)
from meshwarden.xds import api
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.server import add_ads
from meshwarden.xds.snapshot import Resource, Snapshot, resource

DOMAIN = "mesh.test"
NOTHING = Declared(DOMAIN)
"""A mesh without policies: what is called is said here, and not by resources."""
HOUR = timedelta(hours=1)
DEADLINE_S = 60.0


def eventually(look: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Returns the first true value of `look`."""
    until = time.monotonic() + deadline_s
    pause = threading.Event()
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        pause.wait(0.05)
    raise AssertionError(f"{what}: not within {deadline_s:g} s")


class Authority:
    """A root, and the `key` of the intermediate, which signs."""

    def __init__(self, domain: str = DOMAIN) -> None:
        self.domain = domain
        now, key, issuing = utc_now(), svid.new_key(), svid.new_key()
        root = issue.self_signed_root(domain, key, now)
        chain = issue.sign_intermediate(domain, issuing.public_key(), issue.IssuerKey(key, (root,)), now)
        self.key = issue.IssuerKey(issuing, chain)
        self.bundle = Bundle.of(domain, [root])

    def issue(self, spiffe_id: SpiffeId, ttl: timedelta = HOUR) -> svid.X509Svid:
        key = svid.new_key()
        template = issue.LeafTemplate(spiffe_id, ttl)
        return svid.X509Svid.of(issue.issue_leaf(template, key.public_key(), self.key, utc_now()), key)


class AdsClient:
    def __init__(self, agent: "Agent") -> None:
        self._agent = agent

    def snapshot(self) -> Snapshot | None:
        return self._agent.present

    async def changed(self, after: Snapshot | None) -> Snapshot:
        while (now := self._agent.present) is None or now is after:
            await self._agent.change.wait()
        return now

    def acked(self, type_url: str, version: str) -> None:
        pass

    async def admit(self) -> None:
        """At once."""

    def charge(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        self._agent.nacks += [f"{refusal.type_url}: {refusal.message}" for refusal in refusals]

    def settled(self, snapshot: Snapshot) -> None:
        self._agent.answered(snapshot)

    def close(self) -> None:
        pass


class Agent(workload_service_pb2_grpc.WorkloadServiceServicer, trace_service_pb2_grpc.TraceServiceServicer):
    """The agent of one workload, which it knows by the socket."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, directory: Path) -> None:
        self._portal = portal
        self.socket = directory / "agent.sock"
        self.change = anyio.Event()
        self.snapshot: Snapshot | None = None
        self.config: workload_service_pb2.WorkloadConfig | None = None
        self.nacks: list[str] = []
        self.reports: list[report_pb2.CallStat] = []
        self.spans: list[trace_pb2.Span] = []
        self.shares: list[quota_service_pb2.Share] = []
        self.used: Counter[tuple[str, str, str]] = Counter()
        self.held: list[list[quota_service_pb2.Share]] = []
        self.left = 0
        self.leaves = 0
        self._closed: Snapshot | None = None
        self._answered: Snapshot | None = None
        self._server: grpc.aio.Server | None = None

    async def open(self, context: Any, node: Any) -> AdsClient:
        return AdsClient(self)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[workload_service_pb2.WorkloadConfig]:  # noqa: N802
        sent = None
        while True:
            change = self.change
            if self.config is not None and self.config is not sent:
                sent = self.config
                yield sent
            await change.wait()

    async def Report(  # noqa: N802
        self, request: workload_service_pb2.ReportCallsRequest, context: Any
    ) -> workload_service_pb2.ReportCallsResponse:
        self.reports.extend(stats_of(request.call_tables))
        return workload_service_pb2.ReportCallsResponse()

    async def Share(self, requests: Any, context: Any) -> AsyncIterator[quota_service_pb2.ShareResponse]:  # noqa: N802
        """Gives `shares` to each report, and counts what is used: {(tenant, method, decision): calls}."""
        async for request in requests:
            self.left += len(request.left)
            for report in request.points:
                if report.begins:
                    self.held.append(list(report.held))
                for usage in report.usages:
                    bucket = usage.bucket.tenant, usage.bucket.method
                    self.used[*bucket, "allowed"] += usage.allowed
                    self.used[*bucket, "denied"] += usage.denied
                    self.used[*bucket, "shadowed"] += usage.shadowed
            response = quota_service_pb2.ShareResponse(sequence=request.sequence, answers=request.sequence)
            response.ttl.FromSeconds(30)
            response.points.add(shares=self.shares)
            yield response

    @property
    def present(self) -> Snapshot | None:
        """What the workload is to have; while it leaves, without callers."""
        return self._closed or self.snapshot

    def answered(self, snapshot: Snapshot) -> None:
        self._answered = snapshot
        self._notify()

    async def Leave(self, request: Any, context: Any) -> AsyncIterator[workload_service_pb2.LeaveResponse]:  # noqa: N802
        assert self.snapshot is not None
        self.leaves += 1
        closed = self._closed = without_callers(self.snapshot)
        self._notify()
        try:
            while self._answered is not closed:
                await self.change.wait()
            yield workload_service_pb2.LeaveResponse()
            await anyio.sleep_forever()
        finally:
            self._closed = None
            self._notify()

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:  # noqa: N802
        for resource_spans in request.resource_spans:
            for scope in resource_spans.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def start(self) -> None:
        self._portal.call(self._start)

    def stop(self) -> None:
        self._portal.call(self._stop)

    def say(
        self, config: workload_service_pb2.WorkloadConfig | None = None, resources: Sequence[Resource] | None = None
    ) -> None:
        """Changes what the workload is told."""
        self._portal.call(self._say, config, resources)

    def counted(self, reporter: int) -> Counter[tuple[str, str, int]]:
        """What was reported: {(method, status, decision): calls}."""
        found: Counter[tuple[str, str, int]] = Counter()
        for stat in list(self.reports):
            if stat.reporter == reporter:
                found[stat.method, stat.status, stat.decision] += stat.count
                assert sum(stat.durations.counts) == stat.count
        return found

    async def _start(self) -> None:
        self._server = grpc.aio.server()
        add_ads(self._server, self)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        workload_service_pb2_grpc.add_WorkloadServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def _say(
        self, config: workload_service_pb2.WorkloadConfig | None, resources: Sequence[Resource] | None
    ) -> None:
        self.config = config or self.config
        if resources is not None:
            self.snapshot = Snapshot.of(resources)
        self._notify()

    def _notify(self) -> None:
        change, self.change = self.change, anyio.Event()
        change.set()


class Workload:
    """An identity with an agent, and the environment of its program."""

    def __init__(self, mesh: "Mesh", tenant: str, service: str, port: int) -> None:
        self.mesh = mesh
        self.name = Name(tenant, service)
        self.port = port
        self.spiffe_id = SpiffeId.workload(DOMAIN, tenant, service)
        self.directory = mesh.directory / f"{tenant}-{service}-{port}"
        self.credentials = self.directory / "credentials"
        self.credentials.mkdir(parents=True)
        self.agent = Agent(mesh.portal, self.directory)
        place = NodePlace("n1", "local", "z1", self.agent.socket, self.directory / "workload.sock")
        bootstrap = self.directory / "bootstrap.json"
        said = f"{service}.{tenant}"
        write_grpc_bootstrap(bootstrap, grpc_bootstrap(place, "x/grpc", said, self.credentials))
        self.variables = environment(place, bootstrap, self.credentials, said, port, None)
        self.publish(mesh.authority.issue(self.spiffe_id))
        self.tell()
        self.agent.start()

    def publish(self, own: svid.X509Svid, roots: Bundle | None = None) -> None:
        """Puts credentials where gRPC reads them."""
        publish(self.credentials, credential_files.content(own, roots or self.mesh.authority.bundle, {}))

    def tell(self, limits: node_service_pb2.ServerLimits | None = None, bundle: Bundle | None = None) -> None:
        """Sends the configuration for the SDK."""
        config = workload_service_pb2.WorkloadConfig(
            spiffe_id=str(self.spiffe_id),
            region="local",
            bundle=(bundle or self.mesh.authority.bundle).to_proto(),
            limits=limits,
            access=self.mesh.access(self.name),
            revision=7,
            credential_directory=str(self.credentials),
            names={"orders": "platform/orders"},
        )
        self.agent.say(config)

    def start(self, *command: str) -> "Process":
        """Starts a program of this workload."""
        return self.mesh.run([sys.executable, *command], self.variables)


class Process:
    """A program; what it logs is kept."""

    def __init__(self, command: Sequence[str], variables: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        assert self.popen.stderr is not None
        self._reader = threading.Thread(target=self.log.extend, args=(self.popen.stderr,), daemon=True)
        self._reader.start()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Asks a probe."""
        return self.send(json.dumps({"op": op, **fields}))

    def send(self, line: str) -> dict[str, Any]:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        assert answer, "".join(self.log)
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> int:
        """Ends it and returns its status."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            status = self.popen.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise
        finally:
            self._reader.join(DEADLINE_S)
            for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        return status


class Mesh:
    """Everything of one test."""

    def __init__(self, directory: Path, portal: anyio.from_thread.BlockingPortal) -> None:
        self.directory = directory
        self.portal = portal
        self.authority = Authority()
        self.callee = Name("platform", "orders")
        self.callers: set[Caller] = {Caller("acme", "web")}
        self.others: dict[Name, set[Caller]] = {}
        self.expected: SpiffeId | None = None
        self.epoch = ""
        self.workloads: list[Workload] = []
        self.processes: list[Process] = []
        kept = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
        self.plain_environment = {name: os.environ[name] for name in kept if name in os.environ}

    def workload(self, tenant: str, service: str, port: int = 0) -> Workload:
        made = Workload(self, tenant, service, port)
        self.workloads.append(made)
        self.push()
        return made

    def orders(self, instance: str = "a") -> tuple[Workload, Process]:
        """Starts the sample service and waits until its port is open."""
        serving = self.workload("platform", "orders", free_port(random.SystemRandom()))
        program = serving.start("-m", "meshwarden.examples.orders", "--version", "v1", "--instance", instance)
        self.until_open(serving, program)
        return serving, program

    def probe(self, tenant: str = "acme", service: str = "web") -> tuple[Workload, Process]:
        calling = self.workload(tenant, service)
        return calling, calling.start("-m", "meshwarden.examples.probe")

    def until_open(self, serving: Workload, program: Process) -> None:
        def is_open() -> bool:
            assert program.popen.poll() is None, "".join(program.log)
            with socket.socket() as attempt:
                return attempt.connect_ex(("127.0.0.1", serving.port)) == 0

        eventually(is_open, f"port of {serving.name}")

    def port(self) -> int:
        """A port that is free."""
        return free_port(random.SystemRandom())

    def run(self, command: Sequence[str], variables: dict[str, str]) -> Process:
        """Starts a program, which ends with the mesh at the latest."""
        process = Process(command, {**self.plain_environment, **variables})
        self.processes.append(process)
        return process

    def push(self) -> None:
        """Sends everybody what holds now."""
        shared = self._shared()
        for workload in self.workloads:
            address = f"127.0.0.1:{workload.port}"
            own = [server_dialect.listener(address, workload.name, self.epoch)] if workload.port else []
            workload.agent.say(resources=[*shared, *own])

    def access(self, callee: Name) -> node_service_pb2.ServerAccess:
        """Who may call a service, for servers that ask by themselves."""
        callers = {self.callee: self.callers, **self.others}.get(callee, set())
        said = [resources_pb2.Caller(tenant=one.tenant, service=one.service or "*") for one in sorted(callers)]
        spec = resources_pb2.AccessPolicySpec(allow=[resources_pb2.AccessRule(**{"from": said})] if said else [])
        return node_service_pb2.ServerAccess(policies=[node_service_pb2.PolicyAccess(policy=str(callee), spec=spec)])

    def _shared(self) -> list[Resource]:
        services = {self.callee: self.callers, **self.others}
        own = [client_dialect.listener(NOTHING, "orders", self.callee, Variant(Kind.C_CORE))]
        return own + [one for callee, callers in services.items() for one in self._service(callee, callers)]

    def _service(self, callee: Name, callers: set[Caller]) -> list[Resource]:
        """What clients and servers of a service are told."""
        name = f"{callee.name}.{callee.tenant}"
        grants = tuple(Grant(caller, (ANY_METHOD,), callee, number) for number, caller in enumerate(sorted(callers)))
        route = {"match": {"prefix": ""}, "route": {"cluster": name}}
        routes = {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]}
        ports = [workload.port for workload in self.workloads if workload.name == callee]
        places = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
            for port in ports
        ]
        where = {"locality": {"region": "local", "zone": "z1"}, "load_balancing_weight": 1, "lb_endpoints": places}
        endpoints = {"cluster_name": name, "endpoints": [where] if places else []}
        return [
            client_dialect.listener(NOTHING, name, callee, Variant(Kind.C_CORE)),
            resource(api.build("envoy.config.route.v3.RouteConfiguration", routes), name),
            self._cluster(name, callee),
            resource(api.build("envoy.config.endpoint.v3.ClusterLoadAssignment", endpoints), name),
            server_dialect.routes(Access(callee, grants), DOMAIN),
        ]

    def _cluster(self, name: str, callee: Name) -> Resource:
        expected = str(self.expected or SpiffeId.workload(DOMAIN, *callee))
        provider = {"instance_name": client_dialect.PROVIDER}
        validation = {"ca_certificate_provider_instance": provider, "match_subject_alt_names": [{"exact": expected}]}
        tls = {
            "@type": client_dialect.TLS + "UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificate_provider_instance": provider,
                "validation_context": validation,
            },
        }
        fields = {
            "name": name,
            "type": "EDS",
            "lb_policy": "ROUND_ROBIN",
            "eds_cluster_config": {"eds_config": client_dialect.ADS, "service_name": name},
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        }
        return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)

    def close(self) -> None:
        """Ends everything, whatever of it ends badly."""
        with contextlib.ExitStack() as stack:
            for workload in self.workloads:
                stack.callback(workload.agent.stop)
            for process in self.processes:
                stack.callback(process.end)


@pytest.fixture
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    # Paths of Unix sockets are short.
    directory = tmp_path_factory.mktemp("m")
    with anyio.from_thread.start_blocking_portal() as portal:
        made = Mesh(directory, portal)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    return eventually


@pytest.fixture
def port() -> int:
    return free_port(random.SystemRandom())


@pytest.fixture
def authority() -> type[Authority]:
    return Authority
