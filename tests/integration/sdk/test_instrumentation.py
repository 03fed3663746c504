"""What opentelemetry-instrumentation-grpc says of calls, and what the SDK's interceptors say of the same.

Where the package is wrong its answer is written down as it is: the test tells when it has been mended.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.unit.sdk.carrier import Kept

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.tracing.provider import Provider
from meshwarden.sdk.tracing.trace import tracer

sys.path.insert(0, str(Path(__file__).parent))

from instrumented import DEADLINE_S, SHORT_S, Aio, Kit, Link, Sync, Told, certified, shown, soon, told

# Ours with a provider of the program's own, and with the one that `telemetry` installs.
CONTRIB, OURS, INSTALLED = "contrib", "ours", "installed"


@pytest.fixture(params=[OURS, INSTALLED])
def kit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kit]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    if request.param == INSTALLED:
        provider = Provider(Kept(exporter), lambda: 1.0, shutdown_on_exit=False)
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", lambda name, *_, **__: provider.get_tracer(name))
    tracer.cache_clear()
    yield Kit(provider, exporter, request.param != CONTRIB, Link())
    tracer.cache_clear()
    provider.shutdown()


def by(contrib_says: Any, ours_says: Any) -> Any:
    """Runs a test for both, each with what it is to say."""
    cases = [(CONTRIB, contrib_says), (OURS, ours_says), (INSTALLED, ours_says)]
    return pytest.mark.parametrize(("kit", "said"), cases, indirect=["kit"], ids=[kit for kit, _ in cases])


class TestAioClient:
    @by([], [("ERROR", "CANCELLED")])
    async def test_a_task_that_is_cancelled(self, kit: Kit, said: list[Told], tmp_path: Path) -> None:
        async with Aio(tmp_path, [], kit.aio_client) as aio:
            await aio.give_up("Wait")
            if kit.is_ours:  # the package's call goes on, and nobody waits for its end
                await soon(lambda: aio.handlers.gone)
                await aio.code("Echo")  # the loop has had its turns
        gc.collect()
        assert [one for one in kit.told if one[1] not in ("OK", 0)] == said

    @by([], [("ERROR", "DEADLINE_EXCEEDED")])
    async def test_a_stream_that_is_never_read(self, kit: Kit, said: list[Told], tmp_path: Path) -> None:
        async with Aio(tmp_path, [], kit.aio_client) as aio:
            call = aio.channel.unary_stream("/t.T/Fan")(b"1000000", timeout=SHORT_S)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            del call
            gc.collect()
            await aio.code("Echo")
        assert [one for one in kit.told if one[1] not in ("OK", 0)] == said

    @by([], [("ERROR", "CANCELLED")])
    async def test_a_stream_that_is_broken_off(self, kit: Kit, said: list[Told], tmp_path: Path) -> None:
        async with Aio(tmp_path, [], kit.aio_client) as aio:
            call = aio.channel.unary_stream("/t.T/Fan")(b"1000000")
            async for _ in call:
                break
            call.cancel()
            await soon(lambda: aio.handlers.gone)
            assert kit.told == said
            del call

    @by(
        {"rpc.system": "grpc", "rpc.service": "t.T", "rpc.method": "Echo", "rpc.grpc.status_code": 0},
        {"rpc.system.name": "grpc", "rpc.method": "t.T/Echo", "rpc.response.status_code": "OK"},
    )
    async def test_its_words(self, kit: Kit, said: dict[str, Any], tmp_path: Path) -> None:
        async with Aio(tmp_path, [], kit.aio_client) as aio:
            await aio.code("Echo")
        (span,) = kit.spans
        assert {key: span.attributes.get(key) for key in said} == said  # type: ignore[union-attr]


class TestAioServer:
    @by(("UNSET", 0, 2), ("ERROR", "UNKNOWN", 0))
    @pytest.mark.parametrize("method", ["Fail", "FanFail"])
    async def test_a_handler_that_raises(
        self, kit: Kit, said: tuple[str, Any, int], tmp_path: Path, method: str
    ) -> None:
        async with Aio(tmp_path, [kit.aio_server()]) as aio:
            code, _, _ = await aio.read(method)
            assert code is grpc.StatusCode.UNKNOWN
        (span,) = kit.spans
        assert (*told(span), sum(event.name == "exception" for event in span.events)) == said
        # An exception is an event of the span's, or its status; what was raised is told once.
        assert (span.status.description == "ValueError: boom") == kit.is_ours

    @by(("UNSET", 0), ("ERROR", "DEADLINE_EXCEEDED"))
    async def test_a_deadline_that_runs_out(self, kit: Kit, said: Told, tmp_path: Path) -> None:
        async with Aio(tmp_path, [kit.aio_server()]) as aio:
            assert await aio.code("Wait", timeout_s=SHORT_S) is grpc.StatusCode.DEADLINE_EXCEEDED
            await soon(lambda: kit.spans)
        assert kit.told == [said]

    @by(("UNSET", 0), ("UNSET", "CANCELLED"))
    async def test_a_caller_that_goes(self, kit: Kit, said: Told, tmp_path: Path) -> None:
        async with Aio(tmp_path, [kit.aio_server()]) as aio:
            await aio.give_up("Wait")
            await soon(lambda: kit.spans)
        assert kit.told == [said]

    @by((grpc.StatusCode.UNKNOWN, 0), (grpc.StatusCode.OK, 3))
    @pytest.mark.filterwarnings("ignore:coroutine 'Handlers.write' was never awaited:RuntimeWarning")
    async def test_a_handler_that_writes(self, kit: Kit, said: tuple[Any, int], tmp_path: Path) -> None:
        async with Aio(tmp_path, [kit.aio_server()]) as aio:
            code, details, messages = await aio.read("Write")
        assert (code, len(messages)) == said
        assert ("requires an object with __aiter__ method, got coroutine" in details) == (not kit.is_ours)

    async def test_every_shape_and_every_end(self, kit: Kit, tmp_path: Path) -> None:
        code = grpc.StatusCode
        ends = {
            "Echo": code.OK,
            "Abort": code.NOT_FOUND,
            "Code": code.NOT_FOUND,
            "Fail": code.UNKNOWN,
            "None": code.UNKNOWN,
            "Bad": code.UNKNOWN,
        }
        async with Aio(tmp_path, [kit.aio_server()]) as aio:
            for method, expected in ends.items():
                assert await aio.code(method, b"a") is expected
            for shape, sent in ((aio.channel.stream_stream, [b"a", b"b"]), (aio.channel.stream_unary, b"ab")):
                for method in ("Both", "Read") if sent != b"ab" else ("Gather",):
                    call = shape(f"/t.T/{method}")(iter([b"a", b"b"]))  # type: ignore[operator]
                    assert ([one async for one in call] if sent != b"ab" else await call) == sent
            assert await aio.code("Missing") is code.UNIMPLEMENTED
            assert await aio.code("Sync", b"a") is code.OK  # served, and not traced
        expected_names = [*ends.values(), *[code.OK] * 3]
        assert [one[1] for one in kit.told] == [one.name for one in expected_names]
        assert kit.link.counted() == {}  # nobody has proved who called
        assert all("mesh.source" not in (span.attributes or {}) for span in kit.spans)

    async def test_a_handler_that_goes_on_after_its_caller(self, kit: Kit, tmp_path: Path) -> None:
        async with Aio(tmp_path, [kit.aio_server()]) as aio:
            assert await aio.code("Stubborn", timeout_s=SHORT_S) is grpc.StatusCode.DEADLINE_EXCEEDED
            await soon(lambda: kit.spans)
        assert kit.told == [("ERROR", "DEADLINE_EXCEEDED")]

    async def test_a_call_is_below_its_caller_and_not_below_what_started_the_server(
        self, kit: Kit, tmp_path: Path
    ) -> None:
        parent = f"00-{'a' * 32}-{'b' * 16}-01"
        with kit.provider.get_tracer("t").start_as_current_span("boot"):
            async with Aio(tmp_path, [kit.aio_server()]) as aio:
                ask = aio.channel.unary_unary("/t.T/Echo")
                await ask(b"")
                await ask(b"", metadata=(("traceparent", parent),))
        alone, below, _ = kit.spans
        assert alone.parent is None
        assert below.parent is not None
        assert (f"{below.parent.trace_id:032x}", f"{below.parent.span_id:016x}") == ("a" * 32, "b" * 16)

    async def test_a_caller_that_is_proved_is_named_and_counted(self, kit: Kit, tmp_path: Path, authority: Any) -> None:
        issuer = authority()
        kit.link = Link({"mesh.test": issuer.bundle})
        own, web = certified(issuer)
        context = server_context(own.chain_pem(), own.key_pem(), issuer.bundle.pem(), require_client=True)
        seen = []

        async def who(request: bytes, context: Any) -> bytes:
            seen.append(sdk.peer_identity(context))
            if request:
                raise ValueError(request)
            return b""

        inner = tmp_path / "inner"
        inner.mkdir(mode=0o700)
        front = Front(inner / "s")
        peers = PeerInterceptor(front, PeerVerifier(lambda: kit.link.config.bundles, utc_now))
        server = grpc.aio.server(interceptors=[peers, kit.aio_server()])
        made: Any = grpc
        who_handler = {"Who": made.unary_unary_rpc_method_handler(who)}
        server.add_generic_rpc_handlers((made.method_handlers_generic_handler("t.T", who_handler),))
        server.add_insecure_port(front.inner_target)
        await server.start()
        async with front:
            port = await front.serve_tls("127.0.0.1", 0, lambda: context)
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", *shown(issuer, web)) as channel:
                for request in (b"", b"", b"boom"):
                    await channel.unary_unary("/t.T/Who")(request).code()
        await server.stop(None)
        await server.wait_for_termination()
        assert seen == [web.spiffe_id] * 3
        assert kit.link.counted() == {(str(web.spiffe_id), "OK"): 2, (str(web.spiffe_id), "UNKNOWN"): 1}
        assert {(span.attributes or {})["mesh.source"] for span in kit.spans} == {str(web.spiffe_id)}


class TestSyncServer:
    @by(("UNSET", 0), ("ERROR", "UNKNOWN"))
    def test_a_handler_that_raises(self, kit: Kit, said: Told, authority: Any, until: Callable[..., Any]) -> None:
        issuer = authority()
        kit.link = Link({"mesh.test": issuer.bundle})
        with Sync(issuer, [kit.server()]) as sync:
            assert sync.code("Fail") is grpc.StatusCode.UNKNOWN
            until(lambda: kit.spans, "a span")
        assert kit.told == [said]

    @by(("UNSET", 0), ("ERROR", "DEADLINE_EXCEEDED"))
    def test_a_deadline_that_runs_out(self, kit: Kit, said: Told, authority: Any, until: Callable[..., Any]) -> None:
        issuer = authority()
        kit.link = Link({"mesh.test": issuer.bundle})
        with Sync(issuer, [kit.server()]) as sync:
            assert sync.code("Wait", SHORT_S) is grpc.StatusCode.DEADLINE_EXCEEDED
            until(lambda: kit.spans, "a span")
        assert kit.told == [said]


class TestSyncClient:
    @by(False, True)
    def test_a_stream_can_be_asked_how_it_is(self, kit: Kit, said: bool, authority: Any) -> None:
        with Sync(authority(), [], kit.client) as sync:
            call = sync.channel.unary_stream("/t.T/Fan")(b"")
            assert next(call)
            assert isinstance(call, grpc.Call) == isinstance(call, grpc.Future) == hasattr(call, "code") == said
            del call

    def test_a_stream_that_is_let_go_of_ends(self, kit: Kit, authority: Any, until: Callable[..., Any]) -> None:
        with Sync(authority(), [], kit.client) as sync:
            call = sync.channel.unary_stream("/t.T/Fan")(b"")
            assert next(call)
            del call
            until(sync.gone.is_set, "the server hears of it")
            until(lambda: kit.spans, "a span")
            assert kit.told == [("ERROR", "CANCELLED")]

    def test_a_future_that_is_let_go_of_ends_unless_someone_waits_for_it(
        self, kit: Kit, authority: Any, until: Callable[..., Any]
    ) -> None:
        heard = []
        with Sync(authority(), [], kit.client) as sync:
            ask = sync.channel.unary_unary("/t.T/Wait")
            call = ask.future(b"")
            assert sync.came.wait(DEADLINE_S)
            del call
            until(lambda: kit.spans, "a span")
            assert kit.told == [("ERROR", "CANCELLED")]
            ask.future(b"", timeout=SHORT_S).add_done_callback(heard.append)
            until(lambda: heard, "an answer")
            assert heard[0].code() is grpc.StatusCode.DEADLINE_EXCEEDED

    def test_a_stream_that_is_never_read(self, kit: Kit, authority: Any, until: Callable[..., Any]) -> None:
        with Sync(authority(), [], kit.client) as sync:
            call: Any = sync.channel.unary_stream("/t.T/Fan")(b"", timeout=SHORT_S)
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            until(lambda: kit.spans, "a span")
        assert kit.told == [("ERROR", "DEADLINE_EXCEEDED")]
