"""What `instrumented` is, with grpc.aio on the side that is measured.

    python -m benchmarks.instrumented_aio server KIND RATIO DIRECTORY
    python -m benchmarks.instrumented_aio client RATIO DIRECTORY

Every server stands behind a `Front` and checks who calls, whatever else is on it: where nobody has proved that, ours
counts nothing.
"""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.instrumentation import grpc as contrib

from benchmarks.instrumented import DOMAIN, METHOD, RPC_S, Link, contribs, credentials, named, ours, tell
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.aio_handler import ServedInterceptor
from meshwarden.sdk.front import Front
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.peer import PeerInterceptor
from meshwarden.sdk.tls import server_context


class Empty(grpc.aio.ServerInterceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return await continuation(handler_call_details)

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, request)


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def serve(kind: str, ratio: float, directory: Path) -> None:
    """Serves until SIGTERM."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots))
    ours(ratio)
    made: dict[str, Callable[[], list[Any]]] = {
        "bare": list,
        "empty": lambda: [Empty()],
        "ours": lambda: [ServedInterceptor(link)],
        "contrib": lambda: [contrib.aio_server_interceptor(contribs(ratio))],
    }
    name = named(kind, ratio)
    inner = directory / name
    inner.mkdir(mode=0o700)
    front = Front(inner / "s")
    peers = PeerInterceptor(front, PeerVerifier(lambda: link.config.bundles, utc_now))
    server = grpc.aio.server(interceptors=[peers, *made[kind]()])
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)  # type: ignore[arg-type]  # its type knows sync ones only
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", {"Get": handler}),))
    server.add_insecure_port(front.inner_target)
    await server.start()
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    context = server_context(chain, key, roots, require_client=True)
    async with front:
        tell(directory, name, await front.serve_tls("127.0.0.1", 0, lambda: context))
        await over.wait()
    await server.stop(None)


async def answer(ratio: float, directory: Path) -> None:
    """Makes calls as it is asked, until nobody asks."""
    *_, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots))
    ours(ratio)

    def dial(*interceptors: Any) -> grpc.aio.Channel:
        target, shown, options = credentials(directory, named("bare", ratio))
        return grpc.aio.secure_channel(target, shown, options, interceptors=interceptors)

    made = {
        "bare": dial(),
        "empty": dial(Empty()),
        "ours": CountedAioChannel(dial(), Outgoing(link, "orders")),
        "contrib": dial(*contrib.aio_client_interceptors(contribs(ratio))),
    }
    while line := await asyncio.to_thread(sys.stdin.readline):
        kind, calls = line.split()
        get = made[kind].unary_unary(METHOD)
        begun_s = time.process_time()
        for _ in range(int(calls)):
            await get(b"order", timeout=RPC_S)
        print(json.dumps({"us": (time.process_time() - begun_s) / int(calls) * 1e6}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(serve(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])))
    else:
        asyncio.run(answer(float(sys.argv[2]), Path(sys.argv[3])))
