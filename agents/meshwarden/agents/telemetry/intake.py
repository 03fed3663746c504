"""Where telemetry of programs comes in, whichever way it was sent: identified, bounded, stamped, spooled.

Who sends is known before. The resource attributes that say so are set here, whatever the sender has written. Envoys'
access logs become counts of calls; other records of logs are not ours to keep and are let go. What is answered is on
disk.

Errors: `IntakeRefused`, with the status to answer.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from meshwarden.agents.bootstrap import NodePlace
from meshwarden.agents.telemetry import account
from meshwarden.agents.telemetry.access_log import attributes_of, call_of
from meshwarden.agents.telemetry.account import Drops
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.allowance import Allowance, Share
from meshwarden.agents.telemetry.segment import Items
from meshwarden.agents.telemetry.span import bound_spans
from meshwarden.agents.telemetry.spool import Spool, SpoolFull
from meshwarden.agents.workload import Workload
from meshwarden.v1 import report_pb2 as pb

_MAX_ITEM_BYTES: Final = 1_048_576
_MAX_ITEMS: Final = 256
_MAX_SPANS: Final = 4096
_MAX_RECORDS: Final = 4096
# Reading a request longer than this would keep everybody else waiting; the rest of it is dropped.
_MAX_READING_S: Final = 0.1
_SPANS: Final = Share(part=0.1, burst_s=1.0)
# Ten thousand records a second. Each is a call that the ledger would miss.
_RECORDS: Final = Share(part=0.25, burst_s=2.0)
_RECORD_BYTES: Final = 1 << 20
_OURS: Final = "mesh."
_NAME: Final = "service.name"
_Message = TypeVar("_Message", bound=Message)


class IntakeRefused(Exception):
    """A request is not taken; the message is for its sender."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Piece:
    """Part of a request on its way to the spool, as one record."""

    bodies: list[bytes]
    size: int = 0
    spans: int = 0


class Intake:
    """Takes what programs of this node report."""

    def __init__(self, place: NodePlace, aggregator: Aggregator, spool: Spool, revision: Callable[[], int]) -> None:
        """Puts it together.

        Args:
            place: of this node.
            aggregator: adds up calls.
            spool: keeps what is taken.
            revision: of the policies in force.
        """
        self._place, self._aggregator, self._spool, self._revision = place, aggregator, spool, revision
        self._spans, self._records = Allowance(_SPANS), Allowance(_RECORDS)

    def refuse_stranger(self, signal: str) -> IntakeRefused:
        """Counts a request of nobody that we know, and says what to answer."""
        self._drop(signal, "unidentified", "", 1)
        return IntakeRefused(
            grpc.StatusCode.PERMISSION_DENIED,
            "not a workload of this node: start the program with `meshwarden-agent exec`",
        )

    def drop_calls(self, reason: str, tenant: str, count: int) -> None:
        """Counts calls that are not counted otherwise."""
        self._drop("call", reason, tenant, count)

    def take_calls(self, stats: Iterable[pb.CallStat], tenant: str) -> None:
        """Takes counts of calls, of which the reporter's own side is our word.

        Raises:
            IntakeRefused: they cannot be kept.
        """
        for stat in stats:
            self._aggregator.add(stat)
        self._put_calls(tenant)

    def take_spans(self, body: bytes, workload: Workload) -> trace_pb.ExportTraceServiceResponse:
        """Takes a serialised request for spans; what is malformed or too much in it is dropped, and the answer says so.

        Raises:
            IntakeRefused: nothing of it is taken.
        """
        tenant = workload.spiffe_id.tenant or ""
        self._ration(self._spans, "span", workload)
        with self._spans.spend(workload.id) as used_s:
            request = self._parse(trace_pb.ExportTraceServiceRequest, body, "span", tenant)
            drops = Drops()
            pieces = self._pieces(request, workload, drops, lambda: used_s() > _MAX_READING_S)
            for index, piece in enumerate(pieces):
                payload = pb.ExportRequest(resource_spans=piece.bodies).SerializeToString()
                items = Items(span=piece.spans)
                self._put(tenant, payload, items, len(piece.bodies), drops if index == 0 else None)
            if not pieces:
                self._spool.drop(drops)
        answer = trace_pb.ExportTraceServiceResponse()
        if drops:
            malformed = drops[account.RECEIVE, "span", "malformed", tenant]
            too_large = drops[account.RECEIVE, "span", "too_large", tenant]
            answer.partial_success.rejected_spans = malformed + too_large
            answer.partial_success.error_message = (
                f"{malformed} without valid ids; {too_large} beyond {_MAX_SPANS} spans in a request or "
                f"{_MAX_ITEM_BYTES} bytes in one resource_spans, or too slow to read"
            )
        return answer

    def take_logs(self, body: bytes, workload: Workload) -> logs_pb.ExportLogsServiceResponse:
        """Takes a serialised request for records of logs.

        Raises:
            IntakeRefused: nothing of it is taken.
        """
        tenant = workload.spiffe_id.tenant or ""
        self._ration(self._records, "call", workload)
        with self._records.spend(workload.id):
            request = self._parse(logs_pb.ExportLogsServiceRequest, body, "call", tenant)
            rejected = self._take_records(request, workload)
            self._put_calls(tenant, rejected)
        answer = logs_pb.ExportLogsServiceResponse()
        if rejected:
            answer.partial_success.rejected_log_records = rejected
            answer.partial_success.error_message = f"more than {_MAX_RECORDS} records in a request"
        return answer

    # -- spans

    def _pieces(
        self,
        request: trace_pb.ExportTraceServiceRequest,
        workload: Workload,
        drops: Drops,
        is_late: Callable[[], bool],
    ) -> Sequence[_Piece]:
        """The spans of a request as records of the spool; what is left out stands in `drops`."""
        tenant = workload.spiffe_id.tenant or ""
        malformed = taken = 0
        too_large = max(0, len(request.resource_spans) - _MAX_ITEMS)
        found: list[_Piece] = []
        for spans in request.resource_spans[:_MAX_ITEMS]:
            bounded = bound_spans(spans, _MAX_SPANS - taken, is_late)
            malformed += bounded.malformed
            too_large += bounded.too_many
            if not bounded.kept:
                continue
            self._stamp(spans.resource, workload)
            item = spans.SerializeToString()
            if len(item) > _MAX_ITEM_BYTES:
                too_large += bounded.kept
                continue
            taken += bounded.kept
            if not found or found[-1].size + len(item) > _RECORD_BYTES:
                found.append(_Piece([]))
            found[-1].bodies.append(item)
            found[-1].size += len(item)
            found[-1].spans += bounded.kept
        for reason, count in (("malformed", malformed), ("too_large", too_large)):
            if count:
                drops[account.RECEIVE, "span", reason, tenant] += count
        return found

    def _stamp(self, resource: Resource, workload: Workload) -> None:
        identity = workload.spiffe_id
        ours = {
            _NAME: f"{identity.service}.{identity.tenant}",
            "mesh.tenant": identity.tenant or "",
            "mesh.service": identity.service or "",
            "mesh.node": self._place.node,
            "mesh.region": self._place.region,
        }
        kept = [pair for pair in resource.attributes if pair.key != _NAME and not pair.key.startswith(_OURS)]
        stamped = [
            common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value)) for key, value in ours.items()
        ]
        resource.CopyFrom(Resource(attributes=[*kept, *stamped]))

    # -- calls

    def _take_records(self, request: logs_pb.ExportLogsServiceRequest, workload: Workload) -> int:
        """Adds up the calls of access logs; returns how many records are beyond the bounds."""
        left, rejected = _MAX_RECORDS, max(0, len(request.resource_logs) - _MAX_ITEMS)
        for logs in request.resource_logs[:_MAX_ITEMS]:
            rejected += max(0, len(logs.scope_logs) - _MAX_ITEMS)
            for scope in logs.scope_logs[:_MAX_ITEMS]:
                rejected += max(0, len(scope.log_records) - left)
                for record in scope.log_records[:left]:
                    self._count(record, workload)
                left -= min(left, len(scope.log_records))
        return rejected

    def _count(self, record: logs_pb2.LogRecord, workload: Workload) -> None:
        identity = workload.spiffe_id
        call = call_of(attributes_of(record.attributes), str(identity), f"{identity.tenant}/{identity.service}")
        if call is not None:
            self._aggregator.add_call(call, self._revision())

    def _put_calls(self, tenant: str, too_large: int = 0) -> None:
        stats, malformed = self._aggregator.take()
        drops = Drops()
        for reason, count in (("malformed", malformed), ("too_large", too_large)):
            if count:
                drops[account.RECEIVE, "call", reason, tenant] += count
        for some in _chunks(stats):
            payload = pb.ExportRequest(calls=some).SerializeToString()
            self._put(tenant, payload, Items(call=sum(stat.count for stat in some)), len(some), drops)
            drops = Drops()
        self._spool.drop(drops)

    def take_own_spans(self, body: bytes, count: int) -> None:
        """Takes a serialised ResourceSpans of the agent itself; what can't be kept stands among the drops."""
        payload = pb.ExportRequest(resource_spans=[body]).SerializeToString()
        with contextlib.suppress(IntakeRefused):
            self._put("", payload, Items(span=count), 1, None)

    # -- all signals

    def _put(self, tenant: str, payload: bytes, items: Items, entries: int, drops: Drops | None) -> None:
        try:
            self._spool.put(tenant, payload, items, entries=entries, drops=drops)
        except SpoolFull:
            self._spool.drop(account.lost(items, "disk_full", tenant, account.RECEIVE) + (drops or Drops()))
            raise IntakeRefused(
                grpc.StatusCode.UNAVAILABLE, "the node's disk is full: nothing that is sent can be kept now"
            ) from None

    def _drop(self, signal: str, reason: str, tenant: str, count: int) -> None:
        if count:
            self._spool.drop(Drops({(account.RECEIVE, signal, reason, tenant): count}))

    def _ration(self, allowance: Allowance, signal: str, workload: Workload) -> None:
        if not allowance.has(workload.id):
            self._drop(signal, "rate_limited", workload.spiffe_id.tenant or "", 1)
            raise IntakeRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "this workload's telemetry takes more time than its share: send less",
            )

    def _parse(self, kind: type[_Message], body: bytes, signal: str, tenant: str) -> _Message:
        try:
            return kind.FromString(body)
        except DecodeError:  # UnicodeDecodeError's kin too: protobuf wraps them
            self._drop(signal, "malformed", tenant, 1)
            raise IntakeRefused(grpc.StatusCode.INVALID_ARGUMENT, "the message can't be read") from None


def _chunks(stats: Sequence[pb.CallStat]) -> Iterator[list[pb.CallStat]]:
    """Counts, divided so that each part fits into one record."""
    some: list[pb.CallStat] = []
    size = 0
    for stat in stats:
        some.append(stat)
        size += stat.ByteSize()
        if size >= _RECORD_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
