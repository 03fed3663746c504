"""The ways to send OTLP other than gRPC on the agent's socket.

HTTP on a Unix socket knows its callers as the agent's own socket does. gRPC and HTTP on loopback TCP, for programs that
can't use Unix sockets, are opened only if the configuration says so, and know callers by their tokens. Every local user
can connect there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc

from meshwarden.agents.config import AgentConfig
from meshwarden.agents.telemetry.http import HttpReceiver, Request
from meshwarden.agents.telemetry.intake import Intake
from meshwarden.agents.telemetry.receive import Receiver
from meshwarden.agents.telemetry.token import Tokens
from meshwarden.agents.workload.attest import Attestor
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.sdk.mtls.front import Front

_GRACE_S: Final = 0.5
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_connection_idle_ms", 120_000),
    ("grpc.so_reuseport", 0),
)


class Door:
    """Opens them."""

    def __init__(
        self,
        config: AgentConfig,
        inner: Path,
        registry: Registry,
        intake: Intake,
        tokens: Tokens,
    ) -> None:
        """Opens nothing until `open`; `inner` is a path for a private socket, in a directory of ours alone."""
        self._config, self._inner = config, inner
        self._registry = registry
        self._intake, self._tokens = intake, tokens

    def environment(self, workload: Workload) -> dict[str, str]:
        """The variables that lead a workload's program here."""
        variables = {"MESHWARDEN_OTLP_HTTP_SOCKET": str(self._config.otlp_http_socket)}
        grpc_listen, http_listen = self._config.otlp_grpc_listen, self._config.otlp_http_listen
        if grpc_listen is not None:
            variables["MESHWARDEN_OTLP_GRPC"] = f"http://{grpc_listen}"
        if http_listen is not None:
            variables["MESHWARDEN_OTLP_HTTP"] = f"http://{http_listen}"
        if grpc_listen is not None or http_listen is not None:
            token = quote(f"Bearer {self._tokens.of(workload)}", safe="")
            variables["OTEL_EXPORTER_OTLP_HEADERS"] = f"authorization={token}"
        return variables

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serves while the context lasts.

        Raises:
            OSError: an address can't be listened on.
        """
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._on_socket())
            if self._config.otlp_http_listen is not None:
                await stack.enter_async_context(self._over_http(self._config.otlp_http_listen))
            if self._config.otlp_grpc_listen is not None:
                await stack.enter_async_context(self._over_grpc(self._config.otlp_grpc_listen))
            yield

    @contextlib.asynccontextmanager
    async def _on_socket(self) -> AsyncIterator[None]:
        self._inner.unlink(missing_ok=True)
        front = Front(self._inner)
        attestor = Attestor(front, self._registry)

        def caller(writer: asyncio.StreamWriter, _: Request) -> Workload | None:
            return attestor.find(f"unix:{writer.get_extra_info('peername')}")

        receiver = HttpReceiver(caller, self._intake, self._registry.trace_ratio)
        server = await asyncio.start_unix_server(receiver.serve, self._inner)
        try:
            await front.serve_unix(self._config.otlp_http_socket, 0o666)
            yield
        finally:
            server.close()
            receiver.close()
            await front.aclose()

    @contextlib.asynccontextmanager
    async def _over_http(self, listen: str) -> AsyncIterator[None]:
        def caller(_: asyncio.StreamWriter, request: Request) -> Workload | None:
            return self._tokens.find(request.headers.get(b"authorization", b"").decode("latin-1"))

        receiver = HttpReceiver(caller, self._intake, self._registry.trace_ratio)
        host, _, port = listen.rpartition(":")
        server = await asyncio.start_server(receiver.serve, host.strip("[]"), int(port))
        try:
            yield
        finally:
            server.close()
            receiver.close()

    @contextlib.asynccontextmanager
    async def _over_grpc(self, listen: str) -> AsyncIterator[None]:
        def caller(context: grpc.aio.ServicerContext[Any, Any]) -> Workload | None:
            shown = dict(context.invocation_metadata() or ()).get("authorization", "")
            return self._tokens.find(shown) if isinstance(shown, str) else None

        server = grpc.aio.server(options=_OPTIONS)
        Receiver(caller, self._intake).add_to(server)
        try:
            server.add_insecure_port(listen)
        except RuntimeError:
            raise OSError(f"otlp_grpc_listen: {listen} can't be listened on") from None
        await server.start()
        try:
            yield
        finally:
            await server.stop(_GRACE_S)
