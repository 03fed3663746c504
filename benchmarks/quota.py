"""What a limit across the mesh costs, where the call is and where it is divided, and how exactly it holds."""

import gc
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks import accuracy, chance, chance_restart, decided, limited_envoy, neighbour, redis_bucket
from benchmarks.process import rss_mib, say
from benchmarks.result import Case
from meshwarden.controlplane.quota.allocator import Part, divide
from meshwarden.controlplane.quota.lease import Usage
from meshwarden.controlplane.quota.leases import Leases as Divided
from meshwarden.controlplane.quota.tree import OTHERS, Bucket, Level, Point
from meshwarden.sdk.quota.lease import Leases
from meshwarden.v1 import quota_service_pb2
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.resources_pb2 import MethodLimit, Rate, RateLimit, RatePolicySpec

TENANTS, DECISIONS, LEAVES, HELD = 1000, 200_000, 10_000, 100_000
METHOD: Final = "/bench.Service/Method"
POLICY: Final = "platform/bench"
MOST: Final = 1_000_000


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases."""
    say("quota: decisions")
    for name, spec in (
        ("decision, flat", RatePolicySpec(limits=[RateLimit(tenant="*", requests=MOST)])),
        (
            "decision, three levels",
            RatePolicySpec(
                total=Rate(requests=MOST),
                limits=[
                    RateLimit(tenant="*", requests=MOST, methods=[MethodLimit(method=METHOD, requests=MOST)]),
                ],
            ),
        ),
    ):
        yield _decision(name, spec, rounds)
    say("quota: dividing")
    yield _dividing(rounds)
    say("quota: memory")
    yield _memory()
    say("quota: what is left unused by chance")
    model = accuracy.LIMIT, accuracy.MEAN, accuracy.WEIGHTS, accuracy.POINTS, accuracy.ENVOYS
    for case in chance.cases(*model):
        yield case
    yield chance_restart.case(*model)
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        directory = Path(name)
        for part in (
            decided.cases(directory / "decided", rounds),
            redis_bucket.cases(_place(directory, "redis"), rounds, _alone),
            limited_envoy.cases(_place(directory, "envoy"), rounds),
            neighbour.cases(_place(directory, "neighbour"), rounds),
            accuracy.cases(_place(directory, "accuracy")),
        ):
            async for case in part:
                yield case


def _place(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


def _decision(name: str, spec: RatePolicySpec, rounds: int) -> Case:
    case = Case("quota", f"{name}, {TENANTS} tenants", "a Python call that does nothing, and the clock read", "µs")
    leases = _full(spec)
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    random.Random(1).shuffle(tenants)
    for _ in range(rounds):
        case.add(_us(leases.take, tenants), _us(_nothing, tenants))
    return case


def _alone() -> tuple[float, float]:
    """CPU and time of a decision, in µs: it waits for nothing, so they are the same."""
    leases = _full(RatePolicySpec(limits=[RateLimit(tenant="*", requests=MOST)]))
    took = _us(leases.take, [f"tenant-{number}" for number in range(TENANTS)])
    return took, took


def _full(spec: RatePolicySpec) -> Leases:
    """Leases whose buckets never run dry meanwhile."""
    leases = Leases()
    leases.update(PolicyLimits(policy=POLICY, spec=spec), 0.0)
    shares = []
    for number in range(TENANTS):
        leases.take(f"tenant-{number}", METHOD, 1, 0.0)
        method = METHOD if spec.limits[0].methods else ""
        bucket = quota_service_pb2.Bucket(policy=POLICY, tenant=f"tenant-{number}", method=method)
        shares.append(quota_service_pb2.Share(bucket=bucket, rate=MOST, burst=MOST))
    now_s = time.monotonic()
    leases.grant(shares, now_s)
    leases.prolong(now_s + 3600, now_s)
    return leases


def _nothing(tenant: str, method: str, amount: float, now_s: float) -> None:
    pass


def _us(decide: Callable[[str, str, float, float], object], tenants: Sequence[str]) -> float:
    """CPU of one call."""
    clock = time.monotonic
    began_s = time.process_time()
    for _ in range(DECISIONS // len(tenants)):
        for tenant in tenants:
            decide(tenant, METHOD, 1, clock())
    return (time.process_time() - began_s) / DECISIONS * 1e6


def _dividing(rounds: int) -> Case:
    reference = "the same demands sorted, added up and cut off at one level, without a tree"
    case = Case("quota", f"dividing, {LEAVES} leaves in 100 tenants", reference, "ms")
    rng = random.Random(2)
    root = Part(
        [
            Part([Part(demand=rng.lognormvariate(0, 2)) for _ in range(LEAVES // 100)], weight=rng.choice([1.0, 3.0]))
            for _ in range(100)
        ],
        ceiling=LEAVES,
    )
    demands = [leaf.demand for leaf in root.leaves()]
    for _ in range(rounds):
        began_s = time.process_time()
        divide(root)
        ours_s = time.process_time() - began_s
        began_s = time.process_time()
        _bare(demands, LEAVES)
        case.add(ours_s * 1000, (time.process_time() - began_s) * 1000)
    return case


def _bare(demands: Sequence[float], amount: float) -> list[float]:
    left, level = amount, 0.0
    rising = sorted(demands)
    for number, demand in enumerate(rising):
        level = left / (len(rising) - number)
        if demand > level:
            break
        left -= demand
    return [min(demand, level) for demand in demands]


def _memory() -> Case:
    case = Case("quota", f"memory, {HELD // 1000}k tenants", "a dict of as many names and pairs of numbers", "MiB")
    # Each in a process of its own: in this one there is room that something else has left.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        case.add(processes.submit(_mib, _leases).result(), processes.submit(_mib, _names).result())
    return case


def _names() -> object:
    return {f"tenant-{number}": (float(number), 0.0) for number in range(HELD)}


def _leases() -> object:
    """What the control plane holds of tenants that each have a bucket at one point."""
    divided = Divided(0.0, learn=False)
    divided.put(POLICY, Level(parts={OTHERS: Level(ceiling=100.0)}))
    for node in ("a", "b"):
        usages = {Bucket(POLICY, (f"tenant-{node}-{number}",)): Usage(1.0, 0.0) for number in range(HELD // 2)}
        divided.report(Point(node, "server"), usages, 0.0)
    divided.tick(0.0)
    return divided


def _mib(make: Callable[[], object]) -> float:
    gc.collect()
    before = rss_mib(os.getpid())
    kept = make()
    gc.collect()
    found = rss_mib(os.getpid()) - before
    del kept
    gc.collect()
    return found
