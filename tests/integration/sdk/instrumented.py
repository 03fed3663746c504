"""What test_instrumentation.py instruments: a service on a grpc.aio server, and one on a server with threads."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from opentelemetry.instrumentation import grpc as contrib
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.counted import stats_of

from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate, issue_leaf
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.aio_handler import ServedInterceptor
from meshwarden.sdk.config import Config
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.red.count import Counter
from meshwarden.v1.node_service_pb2 import ServerLimits

HOUR = timedelta(hours=1)
DEADLINE_S = 60.0
SHORT_S = 0.3
SERVER_NAME = "orders.mesh.test"

# What is told of a span: {the status of the span, the status of the call}.
Told = tuple[str, Any]


def told(span: ReadableSpan) -> Told:
    assert span.attributes is not None
    code = span.attributes.get("rpc.response.status_code", span.attributes.get("rpc.grpc.status_code"))
    return span.status.status_code.name, code


class Link:
    """A link to an agent, whose configuration the test gives."""

    def __init__(self, bundles: dict[str, Any] | None = None) -> None:
        self.counter = Counter(utc_now)
        self.denials = Denials()
        identity = SpiffeId.workload("mesh.test", "platform", "orders")
        self.config = Config(identity, bundles or {}, ServerLimits(), 7, Path(), {}, federated=bundles or {})

    @property
    def last_config(self) -> Config:
        return self.config

    def listen(self, listener: Callable[[Config], None]) -> None:
        listener(self.config)

    def counted(self) -> dict[tuple[str, str], int]:
        """{(source, status): calls}."""
        return {(stat.source, stat.status): stat.count for stat in stats_of(self.counter.take())}


@dataclass
class Kit:
    """The interceptors of one side under test."""

    provider: TracerProvider
    exporter: InMemorySpanExporter
    is_ours: bool
    link: Any

    def aio_client(self, target: str) -> grpc.aio.Channel:
        if self.is_ours:
            return CountedAioChannel(grpc.aio.insecure_channel(target), Outgoing(self.link, "orders"))
        return grpc.aio.insecure_channel(target, interceptors=contrib.aio_client_interceptors(self.provider))

    def client(self, channel: grpc.Channel) -> grpc.Channel:
        if self.is_ours:
            return CountedChannel(channel, Outgoing(self.link, "orders"))
        made: grpc.Channel = intercept_channel(channel, contrib.client_interceptor(self.provider))
        return made

    def aio_server(self) -> Any:
        return ServedInterceptor(self.link) if self.is_ours else contrib.aio_server_interceptor(self.provider)

    def server(self) -> Any:
        if self.is_ours:
            return IncomingInterceptor(Incoming(self.link, utc_now))
        return contrib.server_interceptor(self.provider)

    @property
    def spans(self) -> list[ReadableSpan]:
        self.provider.force_flush()
        return list(self.exporter.get_finished_spans())

    @property
    def told(self) -> list[Told]:
        return [told(span) for span in self.spans]


async def soon(look: Callable[[], Any]) -> None:
    """Waits until `look` is true."""
    async with asyncio.timeout(DEADLINE_S):
        while not look():  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.01)


class Handlers:
    """An aio service, t.T, and what has happened to it."""

    def __init__(self) -> None:
        self.came = 0
        self.gone = 0

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise ValueError("boom")

    async def abort(self, request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such order")

    async def none(self, request: bytes, context: Any) -> None:
        return None

    async def code(self, request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return b""

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.came += 1
        try:
            await asyncio.sleep(3600)
        finally:
            self.gone += 1
        return b""

    async def stubborn(self, request: bytes, context: Any) -> bytes:
        try:
            await self.wait(request, context)
        except asyncio.CancelledError:
            return b"nevertheless"
        return b""

    async def fan(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            for _ in range(int(request)):
                yield b"x"
        finally:
            self.gone += 1

    async def fan_fail(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"x"
        raise ValueError("boom")

    async def write(self, request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(request)

    async def gather(self, requests: Any, context: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def both(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def read(self, requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    def generic(self) -> grpc.GenericRpcHandler:
        made: Any = grpc
        unary, fan = made.unary_unary_rpc_method_handler, made.unary_stream_rpc_method_handler
        handlers = {
            "Echo": unary(self.echo),
            "Fail": unary(self.fail),
            "Abort": unary(self.abort),
            "None": unary(self.none, None, bytes.strip),
            "Bad": unary(self.echo, int),
            "Code": unary(self.code),
            "Wait": unary(self.wait),
            "Stubborn": unary(self.stubborn),
            "Sync": unary(lambda request, context: request),
            "Fan": fan(self.fan),
            "FanFail": fan(self.fan_fail),
            "Write": fan(self.write),
            "Gather": made.stream_unary_rpc_method_handler(self.gather),
            "Both": made.stream_stream_rpc_method_handler(self.both),
            "Read": made.stream_stream_rpc_method_handler(self.read),
        }
        return made.method_handlers_generic_handler("t.T", handlers)


def certified(issuer: Any) -> tuple[Any, Any]:
    """The SVIDs of a server, with a name for TLS, and of its caller."""
    key, template = new_key(), LeafTemplate(SpiffeId.workload("mesh.test", "platform", "orders"), HOUR, (SERVER_NAME,))
    own = X509Svid.of(issue_leaf(template, key.public_key(), issuer.key, utc_now()), key)
    return own, issuer.issue(SpiffeId.workload("mesh.test", "acme", "web"))


def shown(issuer: Any, svid: Any) -> tuple[grpc.ChannelCredentials, list[tuple[str, str]]]:
    """Credentials and options of a channel."""
    credentials = grpc.ssl_channel_credentials(issuer.bundle.pem(), svid.key_pem(), svid.chain_pem())
    return credentials, [("grpc.ssl_target_name_override", SERVER_NAME)]


class Aio:
    """A grpc.aio server and a channel to it."""

    def __init__(self, directory: Path, server: list[Any], client: Any = grpc.aio.insecure_channel) -> None:
        self.handlers = Handlers()
        self.server = grpc.aio.server(interceptors=server)
        self.server.add_generic_rpc_handlers((self.handlers.generic(),))
        self.server.add_insecure_port(f"unix:{directory}/s")
        self.channel = client(f"unix:{directory}/s")

    async def __aenter__(self) -> "Aio":
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)
        await self.server.wait_for_termination()

    async def code(self, method: str, request: bytes = b"", timeout_s: float = DEADLINE_S) -> grpc.StatusCode:
        """How a unary call ends."""
        try:
            await self.channel.unary_unary(f"/t.T/{method}")(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def give_up(self, method: str) -> None:
        """Makes a call in a task that is cancelled when the call has come to its handler."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.code, method)
            await soon(lambda: self.handlers.came)
            group.cancel_scope.cancel()

    async def read(self, method: str) -> tuple[grpc.StatusCode, str, list[bytes]]:
        """How a stream of responses ends, and what came of it."""
        messages = []
        try:
            async for message in self.channel.unary_stream(f"/t.T/{method}")(b"a", timeout=DEADLINE_S):
                messages.append(message)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or "", messages
        return grpc.StatusCode.OK, "", messages


class Sync:
    """A server with threads that takes mTLS, and a channel to it."""

    def __init__(self, issuer: Any, server: list[Any], client: Any = lambda channel: channel) -> None:
        self.came, self.gone = threading.Event(), threading.Event()
        made: Any = grpc
        handlers = {
            "Fail": made.unary_unary_rpc_method_handler(self.fail),
            "Wait": made.unary_unary_rpc_method_handler(self.wait),
            "Fan": made.unary_stream_rpc_method_handler(self.fan),
        }
        own, web = certified(issuer)
        roots = issuer.bundle.pem()
        self.server = grpc.server(ThreadPoolExecutor(4), interceptors=server)
        self.server.add_generic_rpc_handlers((made.method_handlers_generic_handler("t.T", handlers),))
        takes = grpc.ssl_server_credentials([(own.key_pem(), own.chain_pem())], roots, require_client_auth=True)
        self.port = self.server.add_secure_port("127.0.0.1:0", takes)
        self.plain = grpc.secure_channel(f"127.0.0.1:{self.port}", *shown(issuer, web))
        self.channel = client(self.plain)

    def fail(self, request: bytes, context: Any) -> bytes:
        raise ValueError("boom")

    def wait(self, request: bytes, context: Any) -> bytes:
        gone = threading.Event()
        self.came.set()
        if context.add_callback(gone.set):
            gone.wait(DEADLINE_S)
        return b""

    def fan(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.gone.set)
        while context.is_active():
            yield b"x" * 1000

    def __enter__(self) -> "Sync":
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.plain.close()
        self.server.stop(None).wait()

    def code(self, method: str, timeout_s: float = DEADLINE_S) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as raised:
            self.channel.unary_unary(f"/t.T/{method}")(b"", timeout=timeout_s)
        code: grpc.StatusCode = raised.value.code()  # type: ignore[attr-defined]
        return code
