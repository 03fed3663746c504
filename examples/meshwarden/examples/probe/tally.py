"""Paced calls, and what became of them."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

MAX_FAILED = 100
MAX_ERRORS = 10
MAX_BODIES = 5
MAX_LATENCIES = 200_000


@dataclass(frozen=True)
class Pace:
    """How many calls, how fast, how many at a time, for how long at most; 0: no bound."""

    count: int
    rate: float
    concurrency: int
    duration_s: float


@dataclass
class Outcome:
    """One call that has ended."""

    code: str
    failed: bool
    error: str = ""
    said: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    trailing: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    reconnected: bool = False


class Tally:
    """The sum of many calls. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun_s = time.monotonic()
        self._codes: Counter[str] = Counter()
        self._said: dict[str, Counter[str]] = {}
        self._errors: dict[str, None] = {}
        self._failed: list[dict[str, Any]] = []
        self._headers: list[dict[str, str]] = []
        self._trailing: list[dict[str, str]] = []
        self._bodies: list[str] = []
        self._latencies_s: list[float] = []
        self._reconnects = 0

    def add(self, outcome: Outcome, latency_s: float) -> None:
        """Adds one call."""
        with self._lock:
            self._codes[outcome.code] += 1
            self._reconnects += outcome.reconnected
            for name, value in outcome.said.items():
                self._said.setdefault(name, Counter())[value] += 1
            if len(self._latencies_s) < MAX_LATENCIES:
                self._latencies_s.append(latency_s)
            if outcome.body is not None and len(self._bodies) < MAX_BODIES:
                self._bodies.append(outcome.body)
            if outcome.failed:
                self._fail(outcome)

    def answer(self) -> dict[str, Any]:
        """The sum, as the probe's protocol has it."""
        with self._lock:
            ordered = sorted(self._latencies_s)
            return {
                "count": self._codes.total(),
                "codes": dict(self._codes),
                **{name: dict(self._said.get(name, {})) for name in ("versions", "instances", "tenants", "spiffe_ids")},
                "errors": list(self._errors),
                "failed": self._failed,
                "headers": self._headers,
                "trailing": self._trailing,
                "bodies": self._bodies,
                "reconnects": self._reconnects,
                "duration_s": round(time.monotonic() - self._begun_s, 6),
                "latency_ms": {"p50": _quantile_ms(ordered, 0.50), "p99": _quantile_ms(ordered, 0.99)},
            }

    def _fail(self, outcome: Outcome) -> None:
        if len(self._failed) < MAX_FAILED:
            at_s = round(time.monotonic() - self._begun_s, 3)
            self._failed.append({"at_s": at_s, "code": outcome.code})
        if len(self._errors) < MAX_ERRORS:
            self._errors[outcome.error] = None
        if outcome.headers and len(self._headers) < MAX_ERRORS:
            self._headers.append(outcome.headers)
        if outcome.trailing and len(self._trailing) < MAX_ERRORS:
            self._trailing.append(outcome.trailing)


def run(pace: Pace, call: Callable[[int], Outcome], stop: threading.Event) -> dict[str, Any]:
    """Calls until the pace's end, or `stop`, and answers with the sum.

    Args:
        pace: how many and how fast.
        call: makes a call; it gets the number of its worker, from 0.
        stop: ends it.
    """
    tally, ticket = Tally(), _Tickets(pace)

    def work(worker: int) -> None:
        while (at_s := ticket.next()) is not None:
            if stop.wait(max(0.0, at_s - time.monotonic())) or ticket.late():
                return
            begun_s = time.perf_counter()
            tally.add(call(worker), time.perf_counter() - begun_s)

    with ThreadPoolExecutor(pace.concurrency) as pool:
        for done in [pool.submit(work, worker) for worker in range(pace.concurrency)]:
            done.result()
    return tally.answer()


class _Tickets:
    """Who may call next, and when."""

    def __init__(self, pace: Pace) -> None:
        self._lock = threading.Lock()
        self._pace = pace
        self._begun_s = time.monotonic()
        self._given = 0

    def next(self) -> float | None:
        with self._lock:
            if self._pace.count and self._given >= self._pace.count:
                return None
            number, self._given = self._given, self._given + 1
        return self._begun_s + (number / self._pace.rate if self._pace.rate else 0.0)

    def late(self) -> bool:
        return bool(self._pace.duration_s) and time.monotonic() - self._begun_s >= self._pace.duration_s


def _quantile_ms(ordered_s: list[float], quantile: float) -> float:
    if not ordered_s:
        return 0.0
    return round(ordered_s[min(len(ordered_s) - 1, int(quantile * len(ordered_s)))] * 1000, 3)
