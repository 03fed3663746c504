"""A program with calls of all shapes, for test_sdk.py: `shapes.py serve` or `shapes.py call sync|aio|steady`.

Messages are bytes.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import grpc

from meshwarden import sdk
from meshwarden.sdk import telemetry

SERVICE = "test.Shapes"
KEPT = ("traceparent", "tracestate", sdk.criticality.KEY)


def headers(context: Any) -> bytes:
    found = {key: value for key, value in context.invocation_metadata() if key in KEPT}
    return json.dumps([str(sdk.peer_identity(context)), found]).encode()


def unary(request: bytes, context: Any) -> bytes | None:
    if request == b"none":
        return None
    if request == b"code":
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return None
    if request == b"raise":
        raise ValueError("boom")
    if request == b"abort":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
    if request == b"wait":
        gone = threading.Event()
        if context.add_callback(gone.set):  # else the caller has gone already
            gone.wait(30)
    return headers(context)


def fan_out(request: bytes, context: Any) -> Iterator[bytes]:
    for _ in range(int(request)):
        yield headers(context)
    if request == b"1":
        raise ValueError("boom")


def fan_in(requests: Iterator[bytes], context: Any) -> bytes:
    return str(len(list(requests))).encode()


def both(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    yield from requests


def picky(message: bytes) -> bytes:
    if message == b"bad":
        raise ValueError("cannot be read")
    return message


def serve() -> None:
    age = timedelta(seconds=float(os.environ.get("SHAPES_AGE_S", "600")))
    server = sdk.server(max_workers=8, max_connection_age=age, connection_grace=timedelta(seconds=1))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, picky),
        "FanOut": grpc.unary_stream_rpc_method_handler(fan_out),
        "FanIn": grpc.stream_unary_rpc_method_handler(fan_in, picky),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_port(f"127.0.0.1:{os.environ['MESHWARDEN_PORT']}")
    sdk.run(server)


def code_of(error: grpc.RpcError) -> str:
    assert isinstance(error, grpc.Call)
    return f"{error.code().name}: {error.details()}"


def call_sync() -> dict[str, Any]:
    answers: dict[str, Any] = {}
    with sdk.channel("xds:///orders") as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Unary")
        for request in (b"fine", b"raise", b"abort", b"none", b"code", b"bad", b"x" * 5_000_000):
            try:
                answers[request[:8].decode()] = ask(request, timeout=60).decode()
            except grpc.RpcError as error:
                answers[request[:8].decode()] = code_of(error)
        try:
            ask(b"wait", timeout=0.5)
        except grpc.RpcError as error:
            answers["wait"] = code_of(error)
        future = ask.future(b"wait", timeout=60)
        future.cancel()
        answers["cancel"] = future.cancelled()
        answers["future"] = ask.future(b"fine", timeout=60).result().decode()
        fan = channel.unary_stream(f"/{SERVICE}/FanOut")
        answers["fan_out"] = len(list(fan(b"3", timeout=60)))
        answers["fan_out_none"] = len(list(fan(b"0", timeout=60)))
        try:
            list(fan(b"1", timeout=60))
        except grpc.RpcError as error:
            answers["fan_out_raise"] = code_of(error)
        stream = fan(b"1000000", timeout=60)
        next(stream)
        stream.cancel()
        gather = channel.stream_unary(f"/{SERVICE}/FanIn")
        answers["fan_in"] = gather(iter([b"a", b"b"]), timeout=60).decode()
        try:
            gather(iter([b"a", b"bad"]), timeout=60)
        except grpc.RpcError as error:
            answers["fan_in_bad"] = code_of(error)
        answers["both"] = [
            m.decode() for m in channel.stream_stream(f"/{SERVICE}/Both")(iter([b"a", b"b"]), timeout=60)
        ]
        try:
            channel.unary_unary(f"/{SERVICE}/Missing")(b"", timeout=60)
        except grpc.RpcError as error:
            answers["missing"] = code_of(error)
        own = (("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"), ("x-tenant", "globex"))
        answers["own trace"] = ask(b"fine", timeout=60, metadata=own).decode()
        with sdk.criticality.calls_are(sdk.Criticality.SHEDDABLE):
            answers["sheddable"] = ask(b"fine", timeout=60).decode()
    return answers


def call_steadily(for_s: float) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    ends_s = time.monotonic() + for_s
    with sdk.channel("xds:///orders") as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Unary")
        while time.monotonic() < ends_s:
            try:
                ask(b"fine", timeout=60)
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[code_of(error)] += 1
    return dict(codes)


async def call_aio() -> dict[str, Any]:
    async def two() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    answers: dict[str, Any] = {}
    async with sdk.aio_channel("xds:///orders") as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Unary")
        for request in (b"fine", b"abort"):
            try:
                answers[request.decode()] = (await ask(request, timeout=60)).decode()
            except grpc.aio.AioRpcError as error:
                answers[request.decode()] = f"{error.code().name}: {error.details()}"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ask(b"wait", timeout=60), 0.5)
        fan = channel.unary_stream(f"/{SERVICE}/FanOut")(b"3", timeout=60)
        answers["fan_out"] = len([message async for message in fan])
        stopped = channel.unary_stream(f"/{SERVICE}/FanOut")(b"1000000", timeout=60)
        async for _ in stopped:
            break
        stopped.cancel()
        answers["fan_in"] = (await channel.stream_unary(f"/{SERVICE}/FanIn")(two(), timeout=60)).decode()
        written = channel.stream_stream(f"/{SERVICE}/Both")(timeout=60)
        await written.write(b"a")
        first = await written.read()
        await written.done_writing()
        answers["both"] = [first.decode(), await written.read() is grpc.aio.EOF]
    return answers


if __name__ == "__main__":
    telemetry.configure()
    if sys.argv[1] == "serve":
        serve()
    elif sys.argv[2] == "steady":
        print(json.dumps(call_steadily(5.0)), flush=True)
    elif sys.argv[2] == "sync":
        print(json.dumps(call_sync()), flush=True)
    else:
        print(json.dumps(asyncio.run(call_aio())), flush=True)
