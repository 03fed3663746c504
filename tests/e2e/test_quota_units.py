"""Limits that count something else than a rate of calls: amounts for a day, costs, bytes, and calls at once."""

import contextlib
import itertools
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import ask
from quota_mesh import DAY, LIMITS, THREE, WORK, Quota

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def a_day() -> str:
    """So many calls for a day that is about half over somewhere, so that none ends here."""
    ahead = 12 - time.gmtime().tm_hour
    zone = f"Etc/GMT{-ahead:+d}" if ahead else "UTC"  # whose names say the opposite
    return f"period: DAY\n  timeZone: {zone}\n  limits: [{{tenant: acme, requests: {DAY}}}]\n"


@pytest.mark.parametrize("quota", [pytest.param(([THREE], a_day()), id="day")], indirect=True)
def test_a_day_has_its_calls_and_no_more_whoever_is_killed(quota: Quota) -> None:
    """What is missing at the end is no more than what is shown as lost.

    Each step calls for as long as it has to, and so slowly that most of the day is left for the next.
    """
    probes = [quota.probe(node) for node in ("node-a", "node-b")]
    with _load(probes, rate=15):
        quota.until_each_served(20)
        quota.kill("server")
        quota.until_each_served(5)
        dead = quota.programs[0]
        assert "counting_orders.py" in " ".join(map(str, dead.args)), "the one of which most is asked"
        dead.kill()
        dead.wait()
    before = len(quota.served(THREE, "v1"))
    quota.serve_one(THREE, "v1")
    with _load(probes, rate=5):
        quota.up.until(lambda: len(quota.served(THREE, "v1")) > before)
    with _load(probes, rate=150) as codes:
        quota.up.until(lambda: (state := _day(quota)) is not None and state["left"] < 1 and state["held"] < 1)
    assert codes["RESOURCE_EXHAUSTED"]
    served, state = len(quota.all_served()), _day(quota)
    assert state is not None
    assert DAY - state["lost"] <= served <= DAY, state
    shown = quota.up.run("quota", "explain", "acme")
    assert f"of {DAY} requests used" in shown.stdout, shown


@contextlib.contextmanager
def _load(probes: "Sequence[subprocess.Popen[str]]", rate: float) -> Iterator[Counter[str]]:
    """Calls so often a second from each; how the calls ended is known afterwards."""
    codes: Counter[str] = Counter()
    call = {**THREE.op, "rate": rate, "concurrency": 5, "timeout_s": 20}
    for probe in probes:
        ask(probe, op="steady_start", id="load", call=call)
    yield codes
    for probe in probes:
        codes.update(ask(probe, op="steady_stop", id="load")["codes"])


def _day(quota: Quota) -> dict[str, float] | None:
    """How the day stands, as the operator is shown; None while nobody can say."""
    shown = quota.up.run("quota", "top", "-o", "json")
    if shown.returncode != 0:
        return None
    for state in json.loads(shown.stdout).get("quotas", []):
        return {name: float(state["period"].get(name, 0)) for name in ("granted", "used", "held", "lost", "left")}
    return None


@dataclass(frozen=True)
class Call:
    """A call, by the word of the server that served it."""

    begun_s: float
    ended_s: float
    size_bytes: int


CALLERS = 10
COST = 8  # of working_orders.py


def worked(quota: Quota, since_s: float) -> list[Call]:
    """The calls that began since then, by their beginning."""
    lines = [
        line.split()
        for point in quota.points
        for line in Path(quota._log(*point)).read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    calls = [Call(float(begun_s), float(ended_s), int(size)) for begun_s, ended_s, _, size in lines]
    return sorted((call for call in calls if call.begun_s >= since_s), key=lambda call: call.begun_s)


def spent_within(calls: list[Call], amounts: list[float], rate: float, extra: float) -> None:
    """Holds every window against what the rate gives in it, and what comes to that.

    A call is seen when its handler begins, and was let in before that, on a busy machine a good while: of each caller
    one may be paid for out of the time before the window.
    """
    extra += 2 * CALLERS * max(amounts)
    for start, first in enumerate(calls):
        together = 0.0
        for call, amount in zip(calls[start:], amounts[start:], strict=True):
            together += amount
            span_s = call.begun_s - first.begun_s
            assert together <= rate * span_s + extra, f"{together} in {span_s:.2f} s from {first.begun_s}"


def most_at_once(calls: list[Call]) -> int:
    """How many ran at once, at most."""
    steps = sorted([(call.begun_s, 1) for call in calls] + [(call.ended_s, -1) for call in calls])
    return max(itertools.accumulate(step for _, step in steps))


@pytest.mark.parametrize("quota", [pytest.param(([WORK], LIMITS), id="work")], indirect=True)
def test_costs_bytes_and_calls_at_once_hold_over_points_on_two_nodes(quota: Quota) -> None:
    points = len(quota.points)
    probes = [quota.call(node, WORK, CALLERS) for node in ("node-a", "node-b")]

    def calls_under(limit: str, least_s: float) -> list[Call]:
        quota.limit(f"{{service: orders, whenAway: DENY, {limit}}}")
        since_s = time.monotonic()
        quota.up.until(lambda: _span(worked(quota, since_s)) > least_s)
        return worked(quota, since_s)

    # Far less is reserved than a call costs: what is not settled would pass four times over.
    calls = calls_under("reserve: 2, limits: [{tenant: acme, cost: 40, burst: 40}]", 6)
    # What runs has been let in for its reserve; and a bucket lets one call in when it is opened, and when it is full.
    spent_within(calls, [COST] * len(calls), 40, 40 + (2 * CALLERS + 2 * points) * COST)
    calls = calls_under("limits: [{tenant: acme, bytes: 20000, burst: 20000}]", 4)
    large = max(call.size_bytes for call in calls)
    # What runs has been let in while something was left.
    spent_within(calls, [call.size_bytes for call in calls], 20000, 20000 + (2 * CALLERS + 2 * points) * large)
    calls = calls_under("limits: [{tenant: acme, concurrent: 6}]", 4)
    assert 3 <= most_at_once(calls) <= 6 + points
    answers = [ask(probe, op="steady_stop", id="load") for probe in probes]
    failed = [one["errors"] for one in answers if one["codes"].keys() != {"OK", "RESOURCE_EXHAUSTED"}]
    assert not failed, failed


def _span(calls: list[Call]) -> float:
    return calls[-1].begun_s - calls[0].begun_s if calls else 0.0
