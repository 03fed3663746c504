"""What a question to the service graph costs when a million calls have come in, over five minutes and 5,000 edges.

All edges have changed since the last question, in each round: that is the most that there can be to do. The references
are a walk of a dict that has counts alone, no rates of a window and no percentiles; and what one does who keeps spans
and no graph, a scan of the same calls in SQLite, with counts alone as well.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import apsw

from benchmarks import series
from benchmarks.process import Broken, say
from benchmarks.result import Case
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.graph.graph import Graph
from meshwarden.sdk.red.histogram import bucket_of

EDGES = 5000
CALLS = 1_000_000
WINDOW = timedelta(minutes=5)
SLOT = timedelta(seconds=15)
SLOTS = WINDOW // SLOT
PER_SLOT = CALLS // EDGES // SLOTS
_SCHEMA = "CREATE TABLE spans (at_s INTEGER, source TEXT, destination TEXT, failed INTEGER, duration_s REAL)"
_SCAN = """
SELECT source, destination, count(*), sum(failed), avg(duration_s) FROM spans WHERE at_s >= ?
GROUP BY source, destination ORDER BY source, destination
"""
_Edges = dict[tuple[str, str], Counter[str]]


def cases(rounds: int) -> Iterator[Case]:
    """Yields the cases; each side has its turn in each round."""
    say("gather: graph")
    walk, scan = f"a walk of a dict of {EDGES:,} counters of outcomes", "a scan of the same calls in SQLite"
    changed = Case("gather", "graph query, 1M spans", walk, "ms")
    again = Case("gather", "graph query, 1M spans, asked again", walk, "ms")
    scanned = Case("gather", "graph query, 1M spans, against a scan", scan, "ms")
    graph, db, edges, now = _filled()
    fresh = list(_calls(random.Random(2)))
    for number in range(rounds):
        graph.add(fresh)
        _count(edges, fresh)
        first_ms = _ms(lambda: list(graph.edges(WINDOW, lambda _: True)))
        second_ms = _ms(lambda: list(graph.edges(WINDOW, lambda _: True)))
        walk_ms = _ms(lambda: [(*key, counts.total(), dict(counts)) for key, counts in sorted(edges.items())])
        since_s = int((now - WINDOW).timestamp())
        scan_ms = _ms(lambda since_s=since_s: db.execute(_SCAN, (since_s,)).fetchall())
        changed.add(first_ms, walk_ms)
        again.add(second_ms, walk_ms)
        scanned.add(first_ms, scan_ms)
        say(f"  {number + 1}: {first_ms:.1f}, again {second_ms:.1f} / {walk_ms:.1f}, scan {scan_ms:,.0f} ms")
    yield from (changed, again, scanned)


def _filled() -> tuple[Graph, apsw.Connection, _Edges, datetime]:
    """The same calls in each."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    graph = Graph(lambda: now, edges_per_tenant=EDGES)
    db = apsw.Connection(":memory:")
    db.execute(_SCHEMA)
    edges: _Edges = {}
    rng = random.Random(1)
    for _ in range(SLOTS):
        now += SLOT
        calls = list(_calls(rng))
        graph.add(calls)
        _count(edges, calls)
        at_s = int(now.timestamp())
        with db:
            rows = ((at_s, call.source, call.destination, 0, call.sum_s / call.count) for call in calls)
            db.executemany("INSERT INTO spans VALUES (?, ?, ?, ?, ?)", (row for row in rows for _ in range(PER_SLOT)))
        # Somebody looks now and then.
        told = list(graph.edges(WINDOW, lambda _: True))
    if len(told) != EDGES or sum(edge.outcomes["ok"] for edge in told) != CALLS:
        raise Broken(f"the graph has {len(told):,} edges and not every call")
    return graph, db, edges, now


def _calls(rng: random.Random) -> Iterator[Call]:
    """A slot's calls of each edge."""
    for call in series.calls(EDGES * series.METHODS):
        if call.method.endswith("Method0"):
            durations_s = [rng.lognormvariate(-4.5, 0.5) for _ in range(PER_SLOT)]
            durations = Counter(map(bucket_of, durations_s))
            yield replace(call, count=PER_SLOT, sum_s=sum(durations_s), durations=durations)


def _count(edges: _Edges, calls: Sequence[Call]) -> None:
    for call in calls:
        edges.setdefault((call.source, call.destination), Counter())[call.outcome] += call.count


def _ms(work: Callable[[], object]) -> float:
    begun_s = time.process_time()
    work()
    return (time.process_time() - begun_s) * 1e3
