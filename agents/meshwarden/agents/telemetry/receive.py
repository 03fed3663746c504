"""OTLP over gRPC, on the agent's socket."""

from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

import grpc

from meshwarden.agents.telemetry.intake import Intake, IntakeRefused
from meshwarden.agents.workload import Workload

_ROOT: Final = "opentelemetry.proto.collector"
_Context = grpc.aio.ServicerContext[Any, Any]


class CallerOf(Protocol):
    """Who is behind an RPC."""

    def __call__(self, peer: str, /) -> Workload | None:
        """The workload of a `context.peer()`; None if it is none."""


class Receiver:
    """The two OTLP services."""

    def __init__(self, caller: CallerOf, intake: Intake) -> None:
        """Serves nothing until `add_to`; `caller` tells who sends, `intake` takes what they send."""
        self._caller, self._intake = caller, intake

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves both on `server`."""
        services = {
            f"{_ROOT}.trace.v1.TraceService": ("span", self._intake.take_spans),
            f"{_ROOT}.logs.v1.LogsService": ("log", self._intake.take_logs),
        }
        for name, (signal, take) in services.items():
            # Requests come as bytes: reading them is part of what they cost.
            export: Any = grpc.unary_unary_rpc_method_handler(self._handler(signal, take), None, _serialise)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": export}),))

    def _handler(self, signal: str, take: Callable[[bytes, Workload], Any]) -> Callable[[bytes, _Context], Any]:
        async def export(body: bytes, context: _Context) -> Any:
            workload = self._caller(context.peer())
            try:
                if workload is None:
                    raise self._intake.refuse_stranger(signal)
                return take(body, workload)
            except IntakeRefused as refusal:
                await refuse(context, refusal)

        return export


async def refuse(context: _Context, refusal: IntakeRefused) -> NoReturn:
    """Answers a refusal."""
    await context.abort(refusal.code, str(refusal))
    raise AssertionError("abort raises")


def _serialise(message: Any) -> bytes:
    return bytes(message.SerializeToString())
