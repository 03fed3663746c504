"""OTLP over gRPC."""

from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

import grpc
from google.rpc import error_details_pb2, status_pb2

from meshwarden.agents.telemetry.intake import Intake, IntakeRefused
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.xds.in_force import RevisionAt
from meshwarden.sdk.tracing import numbered

_SERVICES: Final = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "span",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "point",
    "opentelemetry.proto.collector.logs.v1.LogsService": "log",
}
EXPORTS: Final = {f"/{service}/Export": signal for service, signal in _SERVICES.items()}
"""The methods by which they take things: `{method: signal}`."""
_Context = grpc.aio.ServicerContext[Any, Any]


class CallerOf(Protocol):
    """Who is behind an RPC."""

    def __call__(self, context: _Context, /) -> Workload | None:
        """The workload that calls; None if it is none."""


class RevisionsOf(Protocol):
    """What data planes that can't say so themselves have run."""

    def __call__(self, context: _Context, workload: Workload, /) -> RevisionAt | None:
        """That of a workload's Envoy, if it is that which calls."""


class Receiver:
    """The three OTLP services."""

    def __init__(self, caller: CallerOf, intake: Intake, revisions: RevisionsOf = lambda context, workload: None):
        """Serves nothing until `add_to`.

        Args:
            caller: tells who sends.
            intake: takes what they send.
            revisions: tells what spans and calls of an Envoy ran under.
        """
        self._caller, self._intake, self._revisions = caller, intake, revisions

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves them on `server`."""
        for name, signal in _SERVICES.items():
            # Requests come as bytes: reading them is part of what they cost.
            export: Any = grpc.unary_unary_rpc_method_handler(self._handler(signal), None, _serialise)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": export}),))

    def _handler(self, signal: str) -> Callable[[bytes, _Context], Any]:
        async def export(body: bytes, context: _Context) -> Any:
            workload = self._caller(context)
            try:
                if workload is None:
                    raise self._intake.refuse_stranger(signal)
                number = numbered.find(context.invocation_metadata())
                revision_at = self._revisions(context, workload) if signal != "point" else None
                return self._intake.take(signal, body, workload, number=number, revision_at=revision_at)
            except IntakeRefused as refusal:
                await refuse(context, refusal)

        return export


async def refuse(context: _Context, refusal: IntakeRefused) -> NoReturn:
    """Answers a refusal.

    Source: OTLP specification 1.5, "OTLP/gRPC throttling": google.rpc.RetryInfo says when to try again.
    """
    metadata: tuple[tuple[str, bytes], ...] = ()
    if refusal.retry_s is not None:
        status = status_pb2.Status(code=refusal.code.value[0], message=str(refusal))
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(refusal.retry_s * 1e9))
        status.details.add().Pack(info)
        metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(refusal.code, str(refusal), metadata)
    raise AssertionError("abort raises")


def _serialise(message: Any) -> bytes:
    return bytes(message.SerializeToString())
