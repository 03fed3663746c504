"""What it costs to ask whether a caller may call: as servers of grpc.aio do, by how many callers policies name."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from benchmarks.result import Case
from meshwarden.controlplane.policy.grant import Access as Listed
from meshwarden.controlplane.policy.grant import Grant
from meshwarden.controlplane.policy.neutral import Caller, Method, Name
from meshwarden.sdk.access import Access
from meshwarden.v1 import node_service_pb2, resources_pb2

CALLERS: Final = (1, 500, 5000)
DOMAIN, METHOD, ORDERS = "bench.test", "/bench.Orders/Get", Name("platform", "orders")
_A_POLICY: Final = 1000
_BLOCKS: Final = 5


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases: the caller that is named last, so many times in a row."""
    for callers in CALLERS:
        case = Case("access", f"decision, {callers} callers", "every rule in turn, as gRPC's RBAC has it", "µs")
        ours, listed = _indexed(callers), _listed(callers)
        for _ in range(rounds):
            case.add(_least_us(ours, 20_000), _least_us(listed, max(3, 20_000 // callers)))
        yield case


def _indexed(callers: int) -> Callable[[], object]:
    said = node_service_pb2.ServerAccess()
    for start in range(0, callers, _A_POLICY):
        spec = resources_pb2.AccessPolicySpec(service="orders")
        for number in range(start, min(start + _A_POLICY, callers)):
            who = resources_pb2.Caller(tenant="acme", service=f"s{number}")
            spec.allow.append(resources_pb2.AccessRule(**{"from": [who]}, methods=[METHOD]))
        said.policies.add(policy=f"platform/p{start}", spec=spec)
    access, caller = Access(said, DOMAIN), f"spiffe://{DOMAIN}/tenant/acme/service/s{callers - 1}"
    return lambda: access.decide(caller, METHOD, ())


def _listed(callers: int) -> Callable[[], object]:
    method = (Method(METHOD),)
    grants = (Grant(Caller("acme", f"s{number}"), method, ORDERS, number) for number in range(callers))
    access, caller = Listed(ORDERS, tuple(grants)), Name("acme", f"s{callers - 1}")
    return lambda: access.find(caller, METHOD, "POST")


def _least_us(ask: Callable[[], object], times: int) -> float:
    least = float("inf")
    for _ in range(_BLOCKS):
        begun_s = time.process_time()
        for _ in range(times):
            ask()
        least = min(least, (time.process_time() - begun_s) / times * 1e6)
    return least
