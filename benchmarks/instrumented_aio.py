"""What `instrumented` is, with grpc.aio on the side that is measured.

    python -m benchmarks.instrumented_aio server RATIO DIRECTORY
    python -m benchmarks.instrumented_aio client RATIO DIRECTORY

Every server stands behind a `Front` and checks who calls, whatever else is on it: where nobody has proved that, ours
counts nothing.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.instrumentation import grpc as contrib

from benchmarks.instrumented import DOMAIN, METHOD, RPC_S, Link, Providers, credentials, tell
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.aio_handler import ServedInterceptor
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.outgoing import Outgoing


class Empty(grpc.aio.ServerInterceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return await continuation(handler_call_details)

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, request)


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def serve(ratio: float, directory: Path) -> None:
    """Serves until nobody asks."""
    chain, key, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots), ratio)
    providers = Providers(ratio, link)
    made: dict[str, list[Any]] = {
        "bare": [],
        "empty": [Empty()],
        "ours": [ServedInterceptor(link)],
        "contrib": [contrib.aio_server_interceptor(providers.contribs)],
    }
    context = server_context(chain, key, roots, require_client=True)
    async with AsyncExitStack() as stack:
        for kind, interceptors in made.items():
            inner = directory / kind
            inner.mkdir(mode=0o700)
            front = Front(inner / "s")
            peers = PeerInterceptor(front, PeerVerifier(lambda: link.config.bundles, utc_now))
            server = grpc.aio.server(interceptors=[peers, *interceptors])
            handler: Any = grpc.unary_unary_rpc_method_handler(echo)  # type: ignore[arg-type]  # of sync ones
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", {"Get": handler}),))
            server.add_insecure_port(front.inner_target)
            await server.start()
            stack.push_async_callback(server.stop, None)
            await stack.enter_async_context(front)
            tell(directory, kind, await front.serve_tls("127.0.0.1", 0, lambda: context))
        while await asyncio.to_thread(sys.stdin.readline):
            providers.tell_cpu()


async def answer(ratio: float, directory: Path) -> None:
    """Makes calls as it is asked, until nobody asks."""
    *_, roots = read(directory, "tls.crt", "tls.key", "ca.crt")
    link: Any = Link(Bundle.parse_pem(DOMAIN, roots), ratio)
    providers = Providers(ratio, link)

    def dial(*interceptors: Any) -> grpc.aio.Channel:
        target, shown, options = credentials(directory, "bare")
        return grpc.aio.secure_channel(target, shown, options, interceptors=interceptors)

    made = {
        "bare": dial(),
        "empty": dial(Empty()),
        "ours": CountedAioChannel(dial(), Outgoing(link, "orders")),
        "contrib": dial(*contrib.aio_client_interceptors(providers.contribs)),
    }
    while line := await asyncio.to_thread(sys.stdin.readline):
        kind, calls = line.split()
        get = made[kind].unary_unary(METHOD)
        for _ in range(int(calls)):
            await get(b"order", timeout=RPC_S)
        providers.tell_cpu()


if __name__ == "__main__":
    run = {"server": serve, "client": answer}[sys.argv[1]]
    asyncio.run(run(float(sys.argv[2]), Path(sys.argv[3])))
