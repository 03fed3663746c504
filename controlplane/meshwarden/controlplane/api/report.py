"""ReportService: counts and spans of a node's workloads come in."""

from typing import Any, Final

import grpc

from meshwarden.controlplane.gather.gather import Gather, Unwritten
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.sdk import peer
from meshwarden.v1.report_pb2 import ExportRequest, ExportResponse
from meshwarden.v1.report_pb2_grpc import ReportServiceServicer

EXPORT: Final = "/meshwarden.v1.ReportService/Export"


class ReportServicer(ReportServiceServicer):
    """Hands each batch to `gather` in the name of the node whose certificate the caller holds."""

    def __init__(self, gather: Gather, identity: NodeIdentity) -> None:
        self._gather, self._identity = gather, identity

    async def Export(self, request: ExportRequest, context: "grpc.aio.ServicerContext[Any, Any]") -> ExportResponse:
        """Takes a batch, and answers once it is on disk; a repeated one is answered alike and counts once."""
        node = await self._identity.joined(peer.current(), EXPORT)
        self._gather.ingest(node, request)
        try:
            await self._gather.settle()
        except Unwritten as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the batch can't be written: {error}")
        return ExportResponse(sequence=self._gather.marks.get(node, request.run_id))
