"""The reference of `push`: a bidirectional stream and nothing else, behind the same front and TLS as the control plane.

    python -m benchmarks.bare_stream DIRECTORY [WAY]

The directory holds tls.crt, tls.key and ca.crt; `bare.json`, `{"port": …}`, is written there once it listens. `Stream`
sends every stream the bytes that `Push` was given and reads, without a look, whatever comes back. WAY is another way to
it, for `stack`: "grpc" is TLS of grpcio's own, "socket" a Unix socket, before which somebody else may end TLS, and
"splice" the front on a Unix socket, which is in the clear.
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from meshwarden.sdk.mtls.front import Front, FrontLimits
from meshwarden.sdk.mtls.tls import server_context

SERVICE = "bench.Bare"
STREAM = f"/{SERVICE}/Stream"
PUSH = f"/{SERVICE}/Push"
AGAIN = b"again"
"""Who says so first is written what was pushed last."""
MOST_CONNECTIONS = 20_000


class Bare:
    """The two methods. A stream that is behind gets the newest bytes only, as a node's feed does."""

    def __init__(self) -> None:
        self._wakes: set[asyncio.Event] = set()
        self._payload = b""

    async def push(self, payload: bytes, _: Any) -> bytes:
        self._payload = payload
        for wake in self._wakes:
            wake.set()
        return b""

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        wake = asyncio.Event()
        self._wakes.add(wake)
        await context.write(b"welcome")
        writer = asyncio.ensure_future(self._write(wake, context))
        try:
            async for request in requests:
                if request == AGAIN:
                    wake.set()
        finally:
            writer.cancel()
            self._wakes.discard(wake)

    async def _write(self, wake: asyncio.Event, context: Any) -> None:
        with contextlib.suppress(grpc.aio.UsageError):  # the stream ended while we wrote
            while True:
                await wake.wait()
                wake.clear()
                await context.write(self._payload)


async def serve(directory: Path, way: str) -> None:
    """Serves until SIGTERM."""
    bare = Bare()
    made: Any = grpc  # the constructors' types know sync handlers only
    # The options of the control plane's own server (meshwarden.controlplane.api.server).
    server = grpc.aio.server(
        options=[
            ("grpc.server.max_pending_requests", 20_000),
            ("grpc.server.max_pending_requests_hard_limit", 20_000),
            ("grpc.server_max_unrequested_time_in_server", 300),
            ("grpc.max_concurrent_streams", 100),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.bdp_probe", 0),
        ]
    )
    handlers = {
        "Stream": made.stream_stream_rpc_method_handler(bare.stream),
        "Push": made.unary_unary_rpc_method_handler(bare.push),
    }
    server.add_generic_rpc_handlers((made.method_handlers_generic_handler(SERVICE, handlers),))
    async with AsyncExitStack() as stack:
        port = await _listen(directory, way, server, stack)
        draft = directory / "bare.json.draft"
        draft.write_text(json.dumps({"port": port}))
        draft.rename(directory / "bare.json")
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        await over.wait()
        await server.stop(0)


async def _listen(directory: Path, way: str, server: grpc.aio.Server, stack: AsyncExitStack) -> int:
    """Starts a server that is reached in this way; returns its port, 0 if it has none."""
    chain, key, roots = ((directory / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt"))
    inner = directory / "inner"
    inner.mkdir(mode=0o700)
    if way == "grpc":
        trusted = grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", trusted)
        await server.start()
        return port
    if way == "socket":
        server.add_insecure_port(f"unix:{inner / 'bare.sock'}")
        await server.start()
        return 0
    front = await stack.enter_async_context(Front(inner / "bare.sock", FrontLimits(connections=MOST_CONNECTIONS)))
    server.add_insecure_port(front.inner_target)
    await server.start()
    if way == "splice":
        await front.serve_unix(directory / "splice.sock", 0o600)
        return 0
    context = server_context(chain, key, roots)
    return await front.serve_tls("127.0.0.1", 0, lambda: context)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "front"))
