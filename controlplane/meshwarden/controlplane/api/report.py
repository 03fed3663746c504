"""ReportService: counts and spans of a node's workloads come in."""

from typing import Any

import grpc

from meshwarden.certs.spiffe_id import Role
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.sdk import peer
from meshwarden.v1.report_pb2 import ExportRequest, ExportResponse
from meshwarden.v1.report_pb2_grpc import ReportServiceServicer


class ReportServicer(ReportServiceServicer):
    """Hands each batch to `gather` in the name of the node whose certificate the caller holds."""

    def __init__(self, gather: Gather) -> None:
        self._gather = gather

    async def Export(self, request: ExportRequest, context: "grpc.aio.ServicerContext[Any, Any]") -> ExportResponse:
        """Takes a batch, and answers once the ledger holds it; a repeated one is answered alike and counts once."""
        caller = peer.current()
        if caller is None or caller.spiffe_id.role is not Role.NODE or caller.spiffe_id.node is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only a node agent reports calls and spans")
        self._gather.ingest(caller.spiffe_id.node, request)
        await self._gather.settle()
        return ExportResponse()
