"""ReportService: counts and spans of a node's workloads come in."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.api.validation import check
from meshwarden.controlplane.gather.gather import Gather, Unwritten
from meshwarden.controlplane.gather.pack import unpack_bounded
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.resources.batch import MAX_ITEMS
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.sdk.mtls import peer
from meshwarden.v1.report_pb2 import ExportRequest, ExportResponse
from meshwarden.v1.report_pb2_grpc import ReportServiceServicer

EXPORT: Final = "/meshwarden.v1.ReportService/Export"
_MAX_BATCH_BYTES: Final = 4 << 20
_PACKED: Final = ("calls", "call_tables", "resource_spans", "resource_metrics", "resource_logs")
_SPANS: Final = "packed_spans"
_ALLOWED: Final = {"packed": frozenset(_PACKED), _SPANS: frozenset({"resource_spans"})}


class ReportServicer(ReportServiceServicer):
    """Hands each batch to `gather` in the name of the node whose certificate the caller holds."""

    def __init__(self, gather: Gather, identity: NodeIdentity) -> None:
        self._gather, self._identity = gather, identity

    async def Export(self, request: ExportRequest, context: "grpc.aio.ServicerContext[Any, Any]") -> ExportResponse:
        """Takes a batch, and answers once it is on disk; a repeated one is answered alike and counts once."""
        node = await self._identity.joined(peer.current(), EXPORT)
        try:
            await self._gather.make_room()
            self._gather.ingest(node, request, parts(request, reads_spans=self._gather.reads_spans))
            await self._gather.settle()
        except Unwritten as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the batch can't be written: {error}")
        return ExportResponse(sequence=self._gather.marks.get(node, request.run_id))


def parts(request: ExportRequest, *, reads_spans: bool = True) -> Iterator[ExportRequest]:
    """What was packed in a batch, one after the other: each is read while it is in the processor's caches.

    Args:
        request: the batch.
        reads_spans: whether what it has as `packed_spans` is among it.

    Raises:
        InvalidRequest: the next can't be unpacked, or breaks a rule of the schema with those before it.
    """
    left_bytes, found = _MAX_BATCH_BYTES, Counter({field: len(getattr(request, field)) for field in _PACKED})
    spans = [one.spans for one in request.packed_spans] if reads_spans else []
    for field, packed in (
        (field, one) for field, all_ in (("packed", request.packed), (_SPANS, spans)) for one in all_
    ):
        try:
            content = unpack_bounded(packed, left_bytes)
            part = ExportRequest.FromString(content)
        except ValueError as error:
            raise _fault(field, str(error)) from None
        except DecodeError:
            raise _fault(field, "no ExportRequest") from None
        named = {known.name for known, _ in part.ListFields()}
        if not named <= _ALLOWED[field]:
            raise _fault(field, f"must have {', '.join(sorted(_ALLOWED[field]))} alone")
        left_bytes -= len(content)
        for name in named:
            found[name] += len(getattr(part, name))
        if max(found.values()) > MAX_ITEMS:
            raise _fault(field, f"at most {MAX_ITEMS} of each")
        check(part, len(content))
        yield part


def _fault(field: str, message: str) -> InvalidRequest:
    return InvalidRequest([FieldFault(field, message)])
