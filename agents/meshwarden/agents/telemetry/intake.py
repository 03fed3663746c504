"""Where telemetry of programs comes in, whichever way it was sent: identified, bounded, stamped, spooled.

Who sends is known before. The resource attributes that say so are set here, whatever the sender has written. Envoys'
access logs become counts of calls. What is answered is on disk.

Errors: `IntakeRefused`, with the status to answer.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.logs.v1 import logs_pb2

from meshwarden.agents.telemetry import account
from meshwarden.agents.telemetry.access_log import attributes_of, call_of, is_relayed, speaks_for
from meshwarden.agents.telemetry.account import Drops
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.attribute import Bounded
from meshwarden.agents.telemetry.budget import Budget, Rate
from meshwarden.agents.telemetry.counted import Counted, Counts
from meshwarden.agents.telemetry.model_call import framed
from meshwarden.agents.telemetry.model_call import read as read_calls
from meshwarden.agents.telemetry.pack import packed, packed_spans
from meshwarden.agents.telemetry.point import bound_points
from meshwarden.agents.telemetry.record import bound_records
from meshwarden.agents.telemetry.repeat import Repeats
from meshwarden.agents.telemetry.request import Piece, Resources, Sender
from meshwarden.agents.telemetry.segment import Items
from meshwarden.agents.telemetry.service import KINDS, OtlpKind
from meshwarden.agents.telemetry.sieve import are_plain, sift, stamped
from meshwarden.agents.telemetry.spool import Spool, SpoolFull
from meshwarden.agents.telemetry.stamp import Stamp, name_of
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.xds.in_force import RevisionAt
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.sdk.tracing import wire
from meshwarden.sdk.tracing.numbered import Number
from meshwarden.v1 import report_pb2 as pb

_MAX_BODY_BYTES: Final = 1_048_576
_MAX_BODIES: Final = 256
_MAX_ITEMS: Final = 4096
# Reading a request longer than this would keep everybody else waiting; the rest of it is dropped.
_MAX_READING_S: Final = 0.1
_SHARES: Final = {
    "span": Share(part=0.1, burst_s=1.0),
    "point": Share(part=0.1, burst_s=1.0),
    # Ten thousand records a second. Each may be a call that the ledger would miss.
    "log": Share(part=0.25, burst_s=2.0),
}
_RETRY_S: Final = 1.0
_RECORD_BYTES: Final = 1 << 20


class Unreadable(Exception):
    """The body of a request can't be read; the message says why."""


class IntakeRefused(Exception):
    """A request is not taken; the message is for its sender, who may try again after `retry_s` if there is one.

    `drops` is what is lost by that, unless the sender has it still.
    """

    def __init__(self, code: grpc.StatusCode, message: str, drops: Drops, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.drops, self.retry_s = code, drops, retry_s


class Intake:
    """Takes what programs of this node report."""

    def __init__(
        self,
        place: NodePlace,
        aggregator: Aggregator,
        spool: Spool,
        revision: Callable[[], int],
        rate: Rate,
        speakers: Callable[[Workload], Mapping[str, Workload]] = lambda _: {},
    ) -> None:
        """Puts it together.

        Args:
            place: of this node.
            aggregator: adds up calls.
            spool: keeps what is taken.
            revision: the newest that the node has; of calls of whom nobody knows better.
            rate: what each tenant may send.
            speakers: as whom else a workload's Envoy calls, by tenant.
        """
        self._speakers = speakers
        self._stamp, self._aggregator, self._spool, self._revision = Stamp(place), aggregator, spool, revision
        self._allowances = {signal: Allowance(share) for signal, share in _SHARES.items()}
        self._budget = Budget(rate)
        self._repeats = Repeats()
        self.clear = aggregator.clear
        """Who calls in the clear."""
        self.counts = Counts(aggregator)
        """Checks tables of counts before they are taken."""

    def refuse_stranger(self, signal: str) -> IntakeRefused:
        """Counts a request of nobody that we know, and says what to answer."""
        drops = _dropped(signal, "unidentified", "", 1)
        self._spool.drop(drops)
        return IntakeRefused(
            grpc.StatusCode.PERMISSION_DENIED,
            "not a workload of this node: start the program with `meshwarden-agent exec`",
            drops,
        )

    def shed(self, signal: str, tenant: str) -> None:
        """Counts a request that was not let in, unread, since the agent has too much to do."""
        self._spool.owe(_dropped(signal, "overload", tenant, 1))

    def drop_calls(self, reason: str, tenant: str, count: int) -> None:
        """Counts calls that are not counted otherwise."""
        self._spool.drop(_dropped("call", reason, tenant, count))

    def take_calls(
        self,
        stats: Iterable[pb.CallStat],
        tenant: str,
        lost: Drops | None = None,
        *,
        tables: Sequence[Counted] = (),
        is_numbered: bool = False,
    ) -> None:
        """Takes counts of calls, of which the reporter's own side is our word.

        Args:
            stats: the counts.
            tenant: whose they are.
            tables: more of them.
            lost: what the reporter has lost of its telemetry.
            is_numbered: whether the reporter accounts for what is refused.

        Raises:
            IntakeRefused: they cannot be kept.
        """
        self._aggregator.add(stats)
        with self._counting(is_numbered):
            self._put_calls(tenant, lost, tables)

    def take(
        self,
        signal: str,
        body: bytes,
        workload: Workload,
        read: Callable[[Any, bytes], bytes] = lambda kind, body: body,
        number: Number | None = None,
        revision_at: RevisionAt | None = None,
    ) -> Any:
        """Takes an OTLP request; returns OTLP's answer.

        What is malformed or too much in it is dropped, and the answer says how much. Records of Envoys' access logs
        become counts.

        Args:
            signal: "span", "point" or "log".
            body: as it came.
            workload: who has sent it.
            read: makes of it a serialised message of a class; raises DecodeError or Unreadable.
            number: of the request, from a sender that accounts for what is refused.
            revision_at: the revision that an Envoy's spans and calls ran under; None if another sends, whose spans say
                so themselves.

        Raises:
            IntakeRefused: nothing of it is taken.
        """
        if self._repeats.has(workload.id, number):
            return KINDS[signal].response()
        with self._counting(number is not None):
            answer = self._take(signal, body, workload, read, revision_at)
        self._repeats.add(workload.id, number)
        return answer

    def _take(
        self,
        signal: str,
        body: bytes,
        workload: Workload,
        read: Callable[[Any, bytes], bytes],
        revision_at: RevisionAt | None,
    ) -> Any:
        kind, tenant = KINDS[signal], workload.spiffe_id.tenant or ""
        self._ration(signal, workload)
        with self._allowances[signal].spend(workload.id) as used_s:
            resources = self._parse(kind, body, signal, tenant, read)
            drops = Drops()
            sender = Sender(workload, lambda: used_s() > _MAX_READING_S, revision_at)
            pieces = self._pieces(signal, resources, sender, drops) or [Piece([])] * bool(sender.calls)
            items = sum(piece.items for piece in pieces)
            if signal == "log":
                with _losing(_dropped(signal, "disk_full", tenant, items) + drops):
                    self._put_calls(tenant)  # of Envoys' access logs
                if pieces:
                    self._hold_to_budget(signal, tenant, drops, items)
            self._budget.spend(tenant, len(body), items)
            for index, piece in enumerate(pieces):
                items -= piece.items
                told = sender.calls if index == 0 else ()
                payload, of = self._payload(signal, piece, workload, told), Items(**{signal: piece.items})
                with _losing(_dropped(signal, "disk_full", tenant, items)):
                    self._put(tenant, payload, of, len(piece.bodies) + len(told), drops if index == 0 else None)
            if not pieces:
                self._spool.drop(drops)
        answer = kind.response()
        if drops:
            setattr(answer.partial_success, kind.rejected, drops.total())
            answer.partial_success.error_message = (
                f"{drops[account.RECEIVE, signal, 'malformed', tenant]} malformed; "
                f"{drops[account.RECEIVE, signal, 'too_large', tenant]} beyond {_MAX_ITEMS} in a request or "
                f"{_MAX_BODY_BYTES} bytes of one resource, too large, or too slow to read"
            )
        return answer

    # -- OTLP

    def _pieces(self, signal: str, resources: Resources, sender: Sender, drops: Drops) -> Sequence[Piece]:
        """What is in a request as records of the spool; what is left out stands in `drops`."""
        tenant = sender.workload.spiffe_id.tenant or ""
        left_out = Bounded(too_many=max(0, len(resources.all) - _MAX_BODIES))
        found: list[Piece] = []
        taken = 0
        for resource in resources.all[:_MAX_BODIES]:
            body, bounded = self._bound(signal, resource, resources.are_plain, _MAX_ITEMS - taken, sender)
            taken += bounded.claimed
            left_out.malformed += bounded.malformed
            left_out.too_many += bounded.too_many
            if not bounded.kept:
                continue
            if len(body) > _MAX_BODY_BYTES:
                left_out.too_many += bounded.kept
                continue
            taken += bounded.kept
            if not found or found[-1].size + len(body) > _RECORD_BYTES:
                found.append(Piece([]))
            found[-1].bodies.append(body)
            found[-1].size += len(body)
            found[-1].items += bounded.kept
        for reason, count in (("malformed", left_out.malformed), ("too_large", left_out.too_many)):
            if count:
                drops[account.RECEIVE, signal, reason, tenant] += count
        return found

    def _bound(self, signal: str, resource: Any, is_plain: bool, most: int, sender: Sender) -> tuple[bytes, Bounded]:
        """What may go on of a resource's things, stamped, and how much that is."""
        workload, is_late = sender.workload, sender.is_late
        if signal == "span":
            scopes, bounded = sift(resource.scope_spans, most, is_late, is_plain=is_plain)
            scopes, told, gone = read_calls(scopes, is_late)
            sender.calls.extend(told)
            bounded.kept, bounded.claimed = bounded.kept - gone, bounded.claimed + gone
            if sender.revision_at is not None:
                scopes = stamped(scopes, sender.revision_at)
            return self._stamp.head(resource, workload) + wire.all_framed(2, scopes), bounded
        if signal == "point":
            bounded = bound_points(resource, most, is_late)
        else:
            bounded = bound_records(resource, most, is_late, lambda record: self._count(record, sender))
        self._stamp.put(resource.resource, workload)
        return resource.SerializeToString(), bounded

    def _payload(self, signal: str, piece: Piece, workload: Workload, calls: Sequence[pb.ModelCall]) -> bytes:
        """A part of a request as it is kept, with the calls of models that its spans tell of."""
        number = pb.ExportRequest.DESCRIPTOR.fields_by_name[KINDS[signal].field].number
        payload, name = wire.all_framed(number, piece.bodies), name_of(workload.spiffe_id)
        if signal != "span":
            return packed(payload)
        return packed_spans(payload, name, piece.items) + framed(calls, name, self._aggregator.minute())

    # -- calls

    def _count(self, record: logs_pb2.LogRecord, sender: Sender) -> bool:
        """Counts a record that is of an Envoy's access log; whether it is."""
        identity = sender.workload.spiffe_id
        said = attributes_of(record.attributes)
        if (tenant := speaks_for(said)) and (speaker := self._speakers(sender.workload).get(tenant)) is not None:
            identity = speaker.spiffe_id
        call = call_of(said, str(identity), f"{identity.tenant}/{identity.service}")
        if call is not None and not is_relayed(said):
            # The time of a record is that of the call's beginning, as it is of its span.
            revision = sender.revision_at(record.time_unix_nano) if sender.revision_at else self._revision()
            self._aggregator.add_call(call, revision)
        return call is not None

    def _put_calls(self, tenant: str, lost: Drops | None = None, reported: Sequence[Counted] = ()) -> None:
        tables, malformed = self._aggregator.take()
        drops = (lost or Drops()) + _dropped("call", "malformed", tenant, malformed)
        counted = [*reported, *map(Counted.of, tables)]
        left = sum(table.calls for table in counted)
        for table in counted:
            left -= table.calls
            with _losing(_dropped("call", "disk_full", tenant, left)):
                self._put(tenant, packed(table.payload), Items(call=table.calls), table.rows, drops)
            drops = Drops()
        self._spool.drop(drops)

    def take_own_spans(self, body: bytes, count: int) -> None:
        """Takes a serialised ResourceSpans of the agent itself; what can't be kept stands among the drops."""
        payload = pb.ExportRequest(resource_spans=[body]).SerializeToString()
        with contextlib.suppress(IntakeRefused), self._counting(False):
            self._put("", packed(payload), Items(span=count), 1, None)

    # -- all signals

    def _put(self, tenant: str, payload: bytes, items: Items, entries: int, drops: Drops | None) -> None:
        try:
            self._spool.put(tenant, payload, items, entries=entries, drops=drops)
        except SpoolFull:
            raise IntakeRefused(
                grpc.StatusCode.UNAVAILABLE,
                "the node's disk is full: nothing that is sent can be kept now",
                account.lost(items, "disk_full", tenant, account.RECEIVE) + (drops or Drops()),
            ) from None

    @contextlib.contextmanager
    def _counting(self, is_numbered: bool) -> Iterator[None]:
        """Counts what a refusal loses: of who numbers its requests nothing, for it has them still."""
        try:
            yield
        except IntakeRefused as refusal:
            if not is_numbered:
                self._spool.drop(refusal.drops)
            raise

    def _ration(self, signal: str, workload: Workload) -> None:
        tenant = workload.spiffe_id.tenant or ""
        if not self._allowances[signal].has(workload.id):
            raise IntakeRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "this workload's telemetry takes more time than its share: send less",
                _dropped(signal, "rate_limited", tenant, 1),
                _RETRY_S,
            )
        # Logs may be Envoys' word on calls, which no span and no log of the tenant may push out: they are read first.
        if signal != "log":
            self._hold_to_budget(signal, tenant, Drops(), 1)

    def _hold_to_budget(self, signal: str, tenant: str, drops: Drops, count: int) -> None:
        """Refuses what is beyond what a tenant may send; `drops` is what was dropped of it before."""
        wait_s = self._budget.wait_s(tenant)
        if wait_s:
            raise IntakeRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the programs of tenant {tenant} on this node send more than they may: send less",
                drops + _dropped(signal, "rate_limited", tenant, count),
                wait_s,
            )

    def _parse(
        self, kind: OtlpKind, body: bytes, signal: str, tenant: str, read: Callable[[Any, bytes], bytes]
    ) -> Resources:
        try:
            request = read(kind.request, body)
            if signal == "span" and are_plain(request):
                return Resources(wire.Request.FromString(request).resource_spans, are_plain=True)
            message = kind.request.FromString(request)
        except (DecodeError, Unreadable) as error:  # UnicodeDecodeError's kin too: protobuf wraps them
            reason = str(error) if isinstance(error, Unreadable) else "the message can't be read"
            drops = _dropped(signal, "malformed", tenant, 1)
            raise IntakeRefused(grpc.StatusCode.INVALID_ARGUMENT, reason, drops) from None
        if signal == "span":
            return Resources(wire.Request.FromString(request).resource_spans)
        return Resources(getattr(message, kind.field))


@contextlib.contextmanager
def _losing(more: Drops) -> Iterator[None]:
    """What a refusal within loses besides, since it is not tried any more."""
    try:
        yield
    except IntakeRefused as refusal:
        refusal.drops += more
        raise


def _dropped(signal: str, reason: str, tenant: str, count: int) -> Drops:
    return Drops({(account.RECEIVE, signal, reason, tenant): count} if count else {})
