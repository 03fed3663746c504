"""`sdk.aio_server`: who may call as the agent says it, from one moment to the next, and nothing in the clear."""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from meshwarden import sdk
from meshwarden.certs import files
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.local.port import free_port
from meshwarden.sdk.aio_server import AioServer
from meshwarden.sdk.error import AgentAway
from meshwarden.v1.node_service_pb2 import ServerAccess
from meshwarden.v1.report_pb2 import CallStat

sys.path.insert(0, str(Path(__file__).parent))

from instrumented import DEADLINE_S, Handlers, Link, certified, shown, soon
from tests.counted import stats_of

WEB = {"tenant": "acme", "service": "web"}
EVERYTHING = {"allow": [{"from": [WEB, {"tenant": "globex", "service": "*"}]}]}
HEALTH = "grpc.health.v1.Health"


def access(*specs: dict[str, Any]) -> ServerAccess:
    policies = [{"policy": f"platform/p{number}", "spec": spec} for number, spec in enumerate(specs)]
    return json_format.ParseDict({"policies": policies}, ServerAccess())


class Told(Link):
    """A link whose access policies change."""

    socket = Path("agent.sock")

    def __init__(self, issuer: Any, directory: Path) -> None:
        super().__init__({"mesh.test": issuer.bundle})
        self.issuer, self.directory = issuer, directory
        self.listeners: list[Any] = []
        self.config = replace(self.config, credentials=directory)
        self.rotate()

    def listen(self, listener: Any) -> None:
        self.listeners.append(listener)
        listener(self.config)

    def unlisten(self, listener: Any) -> None:
        self.listeners.remove(listener)

    def denied(self, peer: Any) -> str | None:
        return None

    def rotate(self) -> None:
        own, _ = certified(self.issuer)
        content = {"tls.crt": own.chain_pem(), "tls.key": own.key_pem(), "ca.crt": self.issuer.bundle.pem()}
        files.publish(self.directory, content)

    def tell(self, said: ServerAccess | None) -> None:
        self.config = replace(self.config, access=said)
        for listener in self.listeners:
            listener(self.config)


class Served:
    """A server, and channels to it."""

    def __init__(self, directory: Path, issuer: Any) -> None:
        self.issuer, self.link, self.handlers = issuer, Told(issuer, directory / "credentials"), Handlers()
        _, self.web = certified(issuer)
        self.port = free_port(random.SystemRandom())
        self.server = AioServer(self.link)  # type: ignore[arg-type]
        self.server.add_generic_rpc_handlers((self.handlers.generic(), self._health()))
        self.server.add_port(f"127.0.0.1:{self.port}")

    def _health(self) -> grpc.GenericRpcHandler:
        made: Any = grpc
        handlers = {
            "Check": made.unary_unary_rpc_method_handler(self.handlers.echo),
            "Watch": made.unary_stream_rpc_method_handler(self.handlers.write),
        }
        return made.method_handlers_generic_handler(HEALTH, handlers)

    def channel(self, tenant: str = "acme", service: str = "web") -> grpc.aio.Channel:
        svid = self.issuer.issue(SpiffeId.workload("mesh.test", tenant, service))
        credentials, options = shown(self.issuer, svid)
        options = [*options, ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)

    def counted(self) -> dict[tuple[str, int], int]:
        """{(source, decision): calls}."""
        found: dict[tuple[str, int], int] = {}
        for stat in stats_of(self.link.counter.take()):
            key = stat.source.rpartition("/")[2], stat.decision
            found[key] = found.get(key, 0) + stat.count
        return found


@contextlib.asynccontextmanager
async def running(directory: Path, issuer: Any, said: ServerAccess) -> AsyncIterator[Served]:
    served = Served(directory, issuer)
    served.link.tell(said)
    await served.server.start()
    try:
        yield served
    finally:
        await served.server.stop(None)
        assert not served.link.listeners


async def ended(channel: grpc.aio.Channel, method: str = "t.T/Echo", *metadata: tuple[str, str]) -> Any:
    """How a unary call, or one with a stream of answers, ends: (status, words)."""
    is_stream = method.rpartition("/")[2] in ("Fan", "Watch")
    try:
        if is_stream:
            call = channel.unary_stream(f"/{method}")(b"1", timeout=DEADLINE_S, metadata=metadata)
            assert [one async for one in call]
        else:
            await channel.unary_unary(f"/{method}")(b"1", timeout=DEADLINE_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


async def code(*asked: Any) -> grpc.StatusCode:
    return (await ended(*asked))[0]


async def test_it_lets_in_whom_the_policies_do(tmp_path: Path, authority: Any) -> None:
    rules = {
        "allow": [
            {"from": [WEB], "methods": ["/t.T/Echo", "POST /t.T/F*", "GET /t.T/Gather"]},
            {"from": [{"tenant": "globex", "service": "*"}], "headers": [{"name": "x-a", "prefix": "1"}]},
        ],
        "deny": [{"from": [{"tenant": "globex", "service": "job"}], "methods": ["/t.T/Fan"]}],
    }
    ok, denied = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
    async with running(tmp_path, authority(), access(rules)) as served:
        async with served.channel() as web, served.channel("globex", "job") as job, served.channel("x", "web") as x:
            assert [await code(web, f"t.T/{name}") for name in ("Echo", "Fan", "Gather", "Write")] == [
                *(ok, ok),
                *(denied, denied),
            ]
            assert await code(job) == denied
            assert await code(job, "t.T/Echo", ("x-a", "12")) == ok
            assert await code(job, "t.T/Echo", ("x-a", "0"), ("x-a", "1")) == denied, "0,1"
            assert await code(job, "t.T/Fan", ("x-a", "1")) == denied
            status, words = await ended(x)
            assert status == denied
            why = "meshwarden explain --from x/web --to platform/orders --method /t.T/Echo"
            assert words == f"x/web may not call /t.T/Echo of platform/orders; why: {why}"
            # Whoever asks for its health must be let in as well; it isn't counted.
            assert [await code(one, f"{HEALTH}/Check") for one in (web, x)] == [denied, denied]
            assert await code(job, f"{HEALTH}/Check", ("x-a", "1")) == ok
            assert await code(job, f"{HEALTH}/Watch", ("x-a", "1")) == ok
            assert await code(job, f"{HEALTH}/Watch") == denied
        allowed, refused = CallStat.ALLOWED, CallStat.DENIED
        assert served.counted() == {("web", allowed): 2, ("web", refused): 3, ("job", allowed): 1, ("job", refused): 3}


async def test_a_change_holds_at_once_and_ends_the_streams_that_it_shuts_out(tmp_path: Path, authority: Any) -> None:
    async with running(tmp_path, authority(), access(EVERYTHING)) as served:
        async with served.channel() as web, served.channel("globex", "job") as job:
            streams = [one.stream_stream("/t.T/Both")(timeout=DEADLINE_S) for one in (web, job)]
            for stream in streams:
                await stream.write(b"a")
                assert await stream.read() == b"a"
            served.link.tell(access(EVERYTHING, {"deny": [{"from": [WEB]}]}))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await streams[0].read()
            assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert "acme/web may not call /t.T/Both of platform/orders" in (raised.value.details() or "")
            assert await code(web) == grpc.StatusCode.PERMISSION_DENIED
            await streams[1].write(b"b")
            assert await streams[1].read() == b"b", "the other goes on"
            # What the agent takes back it has not said.
            served.link.tell(None)
            with pytest.raises(grpc.aio.AioRpcError):
                await streams[1].read()
            assert await code(job) == grpc.StatusCode.UNAVAILABLE
            served.link.tell(access(EVERYTHING))
            await soon(lambda: served.server._gate.told.is_set())
            assert await code(web) == grpc.StatusCode.OK
        assert served.counted()["web", CallStat.DENIED] == 2


async def test_a_dry_run_is_counted_and_changes_nothing(tmp_path: Path, authority: Any) -> None:
    trial = {
        "dryRun": True,
        "allow": [{"from": [{"tenant": "x", "service": "web"}]}],
        "deny": [{"from": [WEB], "methods": ["/t.T/Echo"]}],
    }
    async with running(tmp_path, authority(), access(EVERYTHING, trial)) as served:
        async with served.channel() as web, served.channel("x", "web") as x:
            assert [await code(web), await code(web, "t.T/Fan")] == [grpc.StatusCode.OK] * 2
            assert await code(x) == grpc.StatusCode.PERMISSION_DENIED
        found = {(stat.method, stat.decision): stat.dry_run for stat in stats_of(served.link.counter.take())}
        assert found == {
            ("/t.T/Echo", CallStat.ALLOWED): "platform/p1#deny[0]",
            ("/t.T/Fan", CallStat.ALLOWED): "",
            ("/t.T/Echo", CallStat.DENIED): "platform/p1#allow[0]",
        }


async def test_certificates_change_without_a_failed_call(tmp_path: Path, authority: Any) -> None:
    async with running(tmp_path, authority(), access(EVERYTHING)) as served, served.channel() as kept:
        over, codes = asyncio.Event(), set()

        async def call() -> None:
            while not over.is_set():
                async with served.channel() as fresh:
                    codes.update({await code(kept), await code(fresh)})

        async with asyncio.TaskGroup() as group:  # noqa: TID251  # none within another
            group.create_task(call())
            for _ in range(20):
                await asyncio.to_thread(served.link.rotate)
                codes.add(await code(kept))
            over.set()
        assert codes == {grpc.StatusCode.OK}


async def test_it_starts_neither_in_the_clear_nor_untold(
    tmp_path: Path, authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, authority())
    for address in ("127.0.0.1:0", "127.0.0.1", ":7021", "127.0.0.1:x", "127.0.0.1:70000"):
        with pytest.raises(ValueError, match="give host:port"):
            served.server.add_port(address)
    for refused in (served.server.add_insecure_port, lambda at: served.server.add_secure_port(at, None)):
        with pytest.raises(TypeError, match="use add_port"):
            refused("127.0.0.1:7021")
    monkeypatch.setattr(sys.modules[AioServer.__module__], "START_S", 0.05)
    with pytest.raises(AgentAway, match="who may call this program"):
        await served.server.start()
    await served.server.stop(None)
    bare = AioServer(served.link)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no port"):
        await bare.start()
    await bare.stop(None)


def test_without_an_agent_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHWARDEN_AGENT_SOCKET", raising=False)
    with pytest.raises(sdk.NotStarted, match="meshwarden-agent exec"):
        sdk.aio_server()


async def test_who_shows_no_certificate_gets_nowhere(tmp_path: Path, authority: Any) -> None:
    async with running(tmp_path, authority(), access(EVERYTHING)) as served:
        place = f"127.0.0.1:{served.port}"
        async with grpc.aio.insecure_channel(place) as plain:
            assert await code(plain) == grpc.StatusCode.UNAVAILABLE
        anonymous = grpc.ssl_channel_credentials(served.issuer.bundle.pem())
        async with grpc.aio.secure_channel(place, anonymous, shown(served.issuer, served.web)[1]) as channel:
            assert await code(channel) == grpc.StatusCode.UNAVAILABLE
        # Nor does whoever finds the private socket: no connection of the front's is behind it.
        async with grpc.aio.insecure_channel(served.server._front.inner_target) as inner:
            assert await code(inner) == grpc.StatusCode.PERMISSION_DENIED


async def test_a_handler_that_nothing_can_guard_is_not_served(tmp_path: Path, authority: Any) -> None:
    async with running(tmp_path, authority(), access(EVERYTHING)) as served, served.channel() as web:
        status, words = await ended(web, "t.T/Sync")
        assert status == grpc.StatusCode.UNIMPLEMENTED
        assert "its handler is not async" in words
        assert await code(web, "t.T/Nothing") == grpc.StatusCode.UNIMPLEMENTED
