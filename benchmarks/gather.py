"""What telemetry costs: on each call, on its way up, in the graph, in memory and on disk.

What it costs on each call is measured by `instrumentation`.
"""

import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks import graph_query, instrumentation, river, trace_query
from benchmarks.process import child, say
from benchmarks.result import Case

SERIES = 100_000


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; memory is the same in every round, so it has one."""
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        directory = Path(name)
        async for case in instrumentation.cases(directory, rounds):
            yield case
        async for case in river.cases(directory, rounds):
            yield case
        for case in graph_query.cases(rounds):
            yield case
        async for case in trace_query.cases(directory, rounds):
            yield case
        yield await _memory(directory)


# -- in memory


async def _memory(directory: Path) -> Case:
    say("gather: memory")
    case = Case("gather", "memory, 100k series", "prometheus-client's Counter and Histogram, same labels", "MiB")
    mib = []
    for kind in ("ours", "theirs"):
        command = [sys.executable, "-m", "benchmarks.series", kind, str(SERIES)]
        async with child(f"series of {kind}", command, directory, is_asked=True) as started:
            mib.append(float((await started.answer(300.0))["mib"]))
    case.add(*mib)
    return case
