"""Spans that the mesh's own parts make of their calls, on real servers and channels."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from meshwarden.controlplane.api.server import traced
from meshwarden.sdk.tracing.own_span import (
    MAX_KEPT,
    Kept,
    add_trace,
    client_interceptor,
    own_provider,
    server_interceptor,
)

METHODS = {"/t.T/Fine", "/t.T/Abort", "/t.T/Log"}


class Sink:
    """Takes spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def __call__(self, body: bytes, count: int) -> None:
        message = ResourceSpans.FromString(body)
        (name,) = [pair.value.string_value for pair in message.resource.attributes if pair.key == "service.name"]
        assert name == "us"
        found = [span for scope in message.scope_spans for span in scope.spans]
        assert len(found) == count
        self.spans += found


async def fine(request: bytes, context: Any) -> bytes:
    return request


async def logged(request: bytes, context: Any) -> bytes:
    return str(add_trace(None, "info", {"event": "e"})["trace_id"]).encode()


async def abort(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.INTERNAL, "no")
    raise AssertionError


async def write(request: bytes, context: Any) -> None:
    await context.write(request)


@pytest.fixture
async def traced_by(tmp_path: Path) -> AsyncIterator[tuple[grpc.aio.Channel, Sink]]:
    sink = Sink()
    provider = own_provider("us", sink)
    server = grpc.aio.server(interceptors=[server_interceptor(provider, METHODS)])
    handlers = {
        "Fine": grpc.unary_unary_rpc_method_handler(fine),
        "Abort": grpc.unary_unary_rpc_method_handler(abort),
        "Log": grpc.unary_unary_rpc_method_handler(logged),
        "Other": grpc.unary_unary_rpc_method_handler(fine),
        "Write": grpc.unary_stream_rpc_method_handler(write),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    interceptors = [client_interceptor(provider, METHODS)]
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s", interceptors=interceptors) as channel:
        yield channel, sink
    await server.stop(0)


async def test_a_call_is_one_trace_with_the_status_of_its_end(traced_by: tuple[grpc.aio.Channel, Sink]) -> None:
    channel, sink = traced_by
    assert await channel.unary_unary("/t.T/Fine")(b"x", timeout=60) == b"x"
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary("/t.T/Abort")(b"x", timeout=60)
    async with asyncio.timeout(60):
        # A caller may hear of the end before the server's span has one.
        while len(sink.spans) < 4:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0.01)
    served = [span for span in sink.spans if span.kind == Span.SPAN_KIND_SERVER]
    called = {span.span_id: span for span in sink.spans if span.kind == Span.SPAN_KIND_CLIENT}
    assert [span.status.code for span in served] == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR]
    assert [called[span.parent_span_id].trace_id for span in served] == [span.trace_id for span in served]
    assert [span.status.code for span in called.values()] == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR]


async def test_lines_of_the_log_within_a_call_carry_its_trace_id(traced_by: tuple[grpc.aio.Channel, Sink]) -> None:
    channel, sink = traced_by
    assert await channel.unary_unary("/t.T/Log")(b"x", timeout=60) == sink.spans[0].trace_id.hex().encode()
    assert add_trace(None, "", {"event": "e"}) == {"event": "e"}


async def test_other_calls_pass_untouched(traced_by: tuple[grpc.aio.Channel, Sink]) -> None:
    channel, sink = traced_by
    assert await channel.unary_unary("/t.T/Other")(b"x", timeout=60) == b"x"
    assert [answer async for answer in channel.unary_stream("/t.T/Write")(b"x", timeout=60)] == [b"x"]
    assert not sink.spans


def test_the_control_plane_traces_unary_calls_alone() -> None:
    methods = traced()
    assert {"/meshwarden.v1.ResourceService/Apply", "/meshwarden.v1.NodeService/SignWorkload"} <= methods
    assert not {"/meshwarden.v1.NodeService/Sync", "/meshwarden.v1.ReportService/Export"} & methods


def test_what_ends_before_anybody_takes_it_is_kept_and_bounded() -> None:
    kept, sent = Kept(), list[int]()
    for number in range(MAX_KEPT + 2):
        kept(b"", number)
    kept.pass_to(lambda body, count: sent.append(count))
    kept(b"", 1000)
    assert sent == [*range(2, MAX_KEPT + 2), 1000]
