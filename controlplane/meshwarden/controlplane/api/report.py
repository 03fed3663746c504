"""ReportService: counts and spans of a node's workloads come in."""

from typing import Any, Final, cast

import grpc
from google.protobuf.message import DecodeError

from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.api.validation import check
from meshwarden.controlplane.gather.gather import Gather, Unwritten
from meshwarden.controlplane.gather.pack import unpack_bounded
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.resources.validate import FieldFault
from meshwarden.sdk.mtls import peer
from meshwarden.v1.report_pb2 import ExportRequest, ExportResponse
from meshwarden.v1.report_pb2_grpc import ReportServiceServicer

EXPORT: Final = "/meshwarden.v1.ReportService/Export"
_MAX_BATCH_BYTES: Final = 4 << 20


class ReportServicer(ReportServiceServicer):
    """Hands each batch to `gather` in the name of the node whose certificate the caller holds."""

    def __init__(self, gather: Gather, identity: NodeIdentity) -> None:
        self._gather, self._identity = gather, identity

    async def Export(self, request: ExportRequest, context: "grpc.aio.ServicerContext[Any, Any]") -> ExportResponse:
        """Takes a batch, and answers once it is on disk; a repeated one is answered alike and counts once."""
        node = await self._identity.joined(peer.current(), EXPORT)
        try:
            await self._gather.make_room()
            self._gather.ingest(node, unpacked(request))
            await self._gather.settle()
        except Unwritten as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the batch can't be written: {error}")
        return ExportResponse(sequence=self._gather.marks.get(node, request.run_id))


def unpacked(request: ExportRequest) -> ExportRequest:
    """A batch with what was packed in it.

    Raises:
        InvalidRequest: that can't be unpacked, or breaks a rule of the schema.
    """
    if not request.packed:
        return request
    rest, left_bytes = ExportRequest(), _MAX_BATCH_BYTES
    try:
        for packed in request.packed:
            content = unpack_bounded(packed, left_bytes)
            left_bytes -= len(content)
            rest.MergeFromString(content)
    except ValueError as error:
        raise InvalidRequest([FieldFault("packed", str(error))]) from None
    except DecodeError:
        raise InvalidRequest([FieldFault("packed", "no ExportRequest")]) from None
    if rest.packed or rest.sequence or rest.first_sequence or rest.run_id or rest.drops:
        raise InvalidRequest([FieldFault("packed", "must have calls, spans, metrics and logs alone")])
    del request.packed[:]
    rest.MergeFrom(request)
    return cast(ExportRequest, check(rest))
