"""The way between a server's leases and its node agent: usage out, shares in, for as long as the server lives.

A report goes out each second, and sooner when a call was refused, a bucket was opened or a share was obeyed, but no
more often than every tenth of a second, and for refused calls every quarter: more often would tell nobody more of what
is wanted, and where a limit is short calls are refused all the time. A lease counts from the moment before the report
was sent that it answers.
"""

import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.quota.chunk import Chunks
from meshwarden.sdk.quota.lease import OFTEN_S, Costs, Leases
from meshwarden.sdk.quota.size import Sizes
from meshwarden.sdk.quota.slot import Slots
from meshwarden.sdk.quota.unit import BYTES, CONCURRENT, COST, REQUESTS, Unit, unit_of
from meshwarden.v1 import node_service_pb2, quota_service_pb2

_EVERY_S: Final = 1.0
_LEAST_S: Final = 0.1
_BACKOFF_S: Final = (0.1, 2.0)
_GOODBYE_S: Final = 0.5
_LONGEST_TTL_S: Final = 60.0
_MAX_UNANSWERED: Final = 256
_Engine: TypeAlias = "Leases | Slots | Chunks"
_KINDS: Final[Mapping[Unit, type[Leases]]] = {REQUESTS: Leases, BYTES: Sizes, COST: Costs, CONCURRENT: Slots}
_log = logging.getLogger("meshwarden.sdk")


class ShareLink:
    """Keeps a stream to the agent, in a thread of its own, from `start` to `close`."""

    def __init__(self, link: AgentLink, monotonic_s: Callable[[], float], rng: random.Random | None = None) -> None:
        self._link, self._monotonic_s = link, monotonic_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries
        self._pressing, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._shares = _Shares(self._pressing.set, self._rng)

    def update(self, policies: Iterable[node_service_pb2.PolicyLimits], now_s: float) -> Mapping[str, _Engine]:
        """Puts other limits in force; returns what holds each policy."""
        return self._shares.update(policies, now_s)

    def start(self) -> None:
        """Begins, if it hasn't."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="meshwarden-share", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Says goodbye, if the agent listens: nothing is used any more."""
        self._closing.set()
        self._pressing.set()
        if self._thread is not None:
            self._thread.join(_GOODBYE_S)

    def _run(self) -> None:
        least_s, most_s = _BACKOFF_S
        pause_s, told = least_s, ""
        while not self._closing.is_set():
            stream = _Stream(self._shares, self._pressing, self._closing, self._monotonic_s)
            try:
                for response in self._link.share(stream.requests()):
                    pause_s, told = least_s, ""
                    stream.take(response)
            except grpc.RpcError as error:
                reason = str(error.details()) if isinstance(error, grpc.Call) else str(error)
                if reason != told and not self._closing.is_set():
                    _log.warning("no shares of limits from the node agent: %s", reason)
                told = reason
            except ValueError:  # the channel is closed
                return
            finally:
                stream.end()
            self._closing.wait(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, most_s)


class _Shares:
    """What a server has of all policies: one enforcement point."""

    def __init__(self, press: Callable[[], None], rng: random.Random) -> None:
        self._press, self._rng = press, rng
        self._leases: Mapping[str, _Engine] = MappingProxyType({})
        self._counts: dict[str, tuple[object, ...]] = {}
        self._ends_s = float("-inf")
        self.replaced = 0
        """How often policies went or began to count something else, so that nothing is held of what was given."""

    @property
    def presses(self) -> bool:
        """Whether a call was refused or a bucket opened since the last report of usage."""
        return any(leases.presses for leases in self._leases.values())

    def update(self, policies: Iterable[node_service_pb2.PolicyLimits], now_s: float) -> Mapping[str, _Engine]:
        """Puts other limits in force; those of a policy that stays keep what they hold."""
        found: dict[str, _Engine] = {}
        for said in policies:
            leases = found[said.policy] = self._engine(said)
            leases.update(said, now_s)
            leases.prolong(self._ends_s, now_s)
        before, self._leases = self._leases, MappingProxyType(found)
        self._counts = {policy: self._counts[policy] for policy in found}
        if any(found.get(policy) is not leases for policy, leases in before.items()):
            self.replaced += 1  # last: a stream that begins after it has nothing of theirs
            self._press()
        return self._leases

    def report(self, now_s: float, *, usage: bool, full: bool) -> quota_service_pb2.PointReport:
        """What there is to say; see `Leases.report`."""
        report = quota_service_pb2.PointReport()
        for leases in self._leases.values():
            report.MergeFrom(leases.report(now_s, usage=usage, full=full))
        return report

    def grant(self, shares: Iterable[quota_service_pb2.Share], base_s: float, now_s: float) -> bool:
        """Obeys shares; those of policies that aren't there are let go. See `Chunks.grant` for `base_s`.

        Returns:
            Whether somebody waits for our word that they are obeyed.
        """
        awaited = False
        by_policy: dict[str, list[quota_service_pb2.Share]] = {}
        for share in shares:
            by_policy.setdefault(share.bucket.policy, []).append(share)
        for policy, granted in by_policy.items():
            leases = self._leases.get(policy)
            if isinstance(leases, Chunks):
                leases.grant(granted, base_s, now_s)
            else:  # who has it no more says so, too
                awaited |= leases is None or leases.grant(granted, now_s)
        return awaited

    def prolong(self, ends_s: float, now_s: float) -> None:
        """The leases hold until `ends_s`."""
        self._ends_s = max(self._ends_s, ends_s)
        for leases in self._leases.values():
            leases.prolong(self._ends_s, now_s)

    def close(self) -> None:
        """Gives back what can be given back: the next report says so."""
        for leases in self._leases.values():
            if isinstance(leases, Chunks):
                leases.close()

    def _engine(self, said: node_service_pb2.PolicyLimits) -> _Engine:
        """What holds a policy, as before if it counts the same."""
        spec, known = said.spec, self._leases.get(said.policy)
        counts = (unit_of(spec), spec.period, spec.time_zone)
        if known is not None and self._counts[said.policy] == counts:
            return known
        self._counts[said.policy] = counts
        if spec.period:
            return Chunks(self._press, lambda: self._rng.getrandbits(63) or 1)
        return _KINDS[unit_of(spec)](self._press)


class _Stream:
    """One stream's reports and answers."""

    def __init__(
        self, shares: _Shares, pressing: threading.Event, closing: threading.Event, monotonic_s: Callable[[], float]
    ) -> None:
        self._shares, self._pressing, self._closing, self._monotonic_s = shares, pressing, closing, monotonic_s
        self._ended, self._replaced = threading.Event(), shares.replaced
        self._lock = threading.Lock()
        self._sent_s: OrderedDict[int, float] = OrderedDict()
        self._obeyed = 0
        self._told_s = float("-inf")
        # When the report was sent that was answered last.
        self._base_s = float("-inf")

    def requests(self) -> Iterator[quota_service_pb2.ShareRequest]:
        """The reports, until the stream ends or the server does; grpc asks for them in a thread of its own.

        Where a policy counts something else another stream has to begin, which says that nothing is held of it: so a
        share that came before this server knew of that is told again.
        """
        sequence = 0
        while not self._ended.is_set() and self._shares.replaced == self._replaced:
            sequence += 1
            closing = self._closing.is_set()
            yield self._report(sequence, closing)
            if closing:
                return
            self._closing.wait(_LEAST_S)
            if not self._pressing.wait(OFTEN_S - _LEAST_S) and not self._shares.presses:
                self._pressing.wait(_EVERY_S - OFTEN_S)
            self._pressing.clear()

    def take(self, response: quota_service_pb2.ShareResponse) -> None:
        """Obeys an answer."""
        now_s = self._monotonic_s()
        with self._lock:
            sent_s = self._sent_s.get(response.answers)
            while self._sent_s and next(iter(self._sent_s)) <= response.answers:
                self._sent_s.popitem(last=False)
        if sent_s is not None:
            self._base_s = sent_s
        awaited = [self._shares.grant(point.shares, self._base_s, now_s) for point in response.points]
        with self._lock:
            self._obeyed = response.sequence
        if any(awaited):
            self._pressing.set()  # what was taken from us is given to others when we say so
        if sent_s is not None:
            ttl_s = response.ttl.seconds + response.ttl.nanos / 1e9
            self._shares.prolong(sent_s + min(max(ttl_s, 0.0), _LONGEST_TTL_S), now_s)

    def end(self) -> None:
        """Ends the reports."""
        self._ended.set()
        self._pressing.set()

    def _report(self, sequence: int, closing: bool) -> quota_service_pb2.ShareRequest:
        now_s = self._monotonic_s()
        with self._lock:
            self._sent_s[sequence] = now_s
            if len(self._sent_s) > _MAX_UNANSWERED:
                self._sent_s.popitem(last=False)
            obeyed = self._obeyed
        # Usage in many small pieces would say little: what is only to be acknowledged goes without.
        usage = closing or self._shares.presses or now_s - self._told_s >= 0.9 * _EVERY_S
        if usage:
            self._told_s = now_s
        if closing:
            self._shares.close()
        report = self._shares.report(now_s, usage=usage, full=sequence == 1)
        report.acknowledged, report.begins = obeyed, sequence == 1
        # By any name: the agent knows who calls.
        return quota_service_pb2.ShareRequest(sequence=sequence, points=[report], left=["self"] if closing else ())
