"""One limit over a whole mesh: points on two nodes, skewed load, and what they served counted by the programs.

What is asserted is the bound of docs/quotas.md, computed for the run, and that every point serves; never how long
something takes. The policy says DENY, so that nobody goes on with a share that may be another's by then.
"""

import os
import random
import threading
import time
from bisect import bisect_right
from typing import Any

import pytest
from programs import ask
from quota_mesh import BURST, CALLERS, ENVOY, FEW, GIVEN_ON, LEAST_BURST, LIMITS, RATE, SDK, STARTER, Plan, Quota

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CHAOS_S = float(os.environ.get("MESHWARDEN_CHAOS_S", "16"))
LAPSED_S = 8.0


def within_bound(served: list[float], points: int, minted: int) -> None:
    """Holds every window against the bound: what the rate gives in it, what may have been saved up, and starters.

    Saved up are the bursts: together one second's calls, but no bucket's is below some. A bucket that is opened anew
    holds two. What ran over may be given on.
    """
    extra = BURST + minted + points * (LEAST_BURST + STARTER) + GIVEN_ON
    for width_s in (1.0, 10.0, 1e9):
        for start, moment in enumerate(served):
            inside = bisect_right(served, moment + width_s) - start
            span_s = min(width_s, served[-1] - moment)
            assert inside <= RATE * span_s + extra, f"{inside} calls in {span_s:.2f} s from {moment}"


@pytest.mark.parametrize(
    "quota",
    [
        pytest.param(([SDK], LIMITS), id="sdk"),
        pytest.param(([ENVOY], LIMITS), id="envoy"),
    ],
    indirect=True,
)
def test_a_limit_holds_over_points_on_two_nodes_whoever_is_killed(quota: Quota) -> None:
    probes = [(quota.call(node, plan), plan) for node in ("node-a", "node-b") for plan in quota.plans]
    quota.until_each_served(5)
    quota.kill("agent-node-a")
    # The least busy point has 2.5 a second: longer than a lease that nobody prolongs.
    quota.until_each_served(10)
    quota.kill("server")
    quota.until_each_served(10)
    # Long enough that points who had the whole limit each would be found out.
    quota.up.until(lambda: _span_s(quota.all_served()) > 4 * (BURST + quota.minted) / RATE)
    answers = [(ask(probe, op="steady_stop", id="load")["codes"], plan.codes) for probe, plan in probes]
    assert any(refused in codes for codes, (_, refused) in answers), answers
    served = quota.all_served()
    assert len(served) >= sum(codes.get(passed, 0) for codes, (passed, _) in answers)
    within_bound(served, len(quota.points), quota.minted)
    quota.up.until(lambda: all(quota.held_back(plan) for plan in quota.plans if plan.throttled))
    none_is_refused_far_below_a_limit(quota, probes)


def none_is_refused_far_below_a_limit(quota: Quota, probes: list[tuple[Any, Plan]]) -> None:
    """An agent is away until the leases of its servers have run out, and another starts again."""
    (plan,) = quota.plans
    passed, _ = plan.codes
    quota.limit(f"{{service: {plan.name}, limits: [{{tenant: acme, requests: 100000}}]}}")
    for probe, _ in probes:
        # What callers have held back was of the limit before.
        quota.up.until(lambda probe=probe: ask(probe, **plan.op, count=20)["codes"] == {passed: 20})
        ask(probe, op="steady_start", id="load", call={**plan.op, "rate": 20, "concurrency": CALLERS, "timeout_s": 20})
    quota.until_each_served(5)
    quota.hold_still("agent-node-a", 5.0)
    quota.kill("agent-node-b")
    quota.until_each_served(10)
    for probe, _ in probes:
        codes = ask(probe, op="steady_stop", id="load")["codes"]
        assert plan.codes[1] not in codes, codes


@pytest.mark.timeout(CHAOS_S + 300)
@pytest.mark.parametrize("quota", [pytest.param(([FEW, ENVOY], LIMITS), id="several")], indirect=True)
def test_the_bound_holds_over_several_services_whatever_breaks_at_random(quota: Quota) -> None:
    """Agents and the control plane are killed and held still at random; `make soak` does so for minutes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if it fails
    rng, waiting = random.Random(seed), threading.Event()
    probes = [(quota.call(node, plan), plan) for node in ("node-a", "node-b") for plan in quota.plans]
    quota.until_each_served(5)
    held_still, killed = [quota.hold_still("agent-node-a", LAPSED_S)], 0
    until_s = time.monotonic() + CHAOS_S - LAPSED_S
    while time.monotonic() < until_s:
        name = rng.choice(["agent-node-a", "agent-node-b", "server"])
        if rng.random() < 0.5:
            quota.kill(name)
            killed += 1
        else:
            held_still.append(quota.hold_still(name, rng.uniform(0.5, 6.0)))
        waiting.wait(rng.uniform(0.0, 4.0))
    quota.until_each_served(5)
    for probe, _ in probes:
        ask(probe, op="steady_stop", id="load")
    # An agent's Envoys end with it: their buckets are opened anew.
    within_bound(quota.all_served(), len(quota.points) * (1 + killed), quota.minted)
    for name, begun_s, end_s in held_still:
        for plan, version in quota.points:
            if name in ("server", f"agent-{plan.servers[version][0]}"):
                late = [moment for moment in quota.served(plan, version) if begun_s + plan.lease_s < moment < end_s]
                # What was under way when the lease ran out: each caller has one call at a time.
                callers = CALLERS * sum(one is plan for _, one in probes)
                assert len(late) <= callers, f"{name} was held still at {begun_s:.2f}: {late}"


def _span_s(served: list[float]) -> float:
    return served[-1] - served[0]
