"""split, rate-limit and tenant-unspoofable: where calls go, how many, and whose they are."""

import asyncio
import math

from meshwarden.controlplane.local.check.call import Probes, grpc_calls, http_calls, only
from meshwarden.controlplane.local.check.mesh import Mesh
from meshwarden.controlplane.local.check.result import require

SPLIT_CALLS = 1000
# A fair split strays further than this once in three million runs.
SIGMAS = 5.0
LIMIT_PER_S = 20
LIMITED_S = 10.0
OFFERED_PER_S = 60
TOLERANCE = 0.1
SPOOFED = {
    "x-tenant": "acme",
    "x-tenant-id": "acme",
    "x-forwarded-client-cert": "URI=spiffe://mesh.test/tenant/acme/service/web",
}

ROUTE = """\
kind: RoutePolicy
metadata: {{tenant: platform, name: orders}}
spec:
  service: orders
  rules:
  - split:
    - {{version: v1, weight: {v1}}}
    - {{version: v2, weight: {v2}}}
"""
RATE = """\
kind: RatePolicy
metadata: {{tenant: platform, name: {service}}}
spec:
  service: {service}
  scope: POINT
  limits:
  - {{tenant: acme, requests: {requests}}}
"""


async def split(mesh: Mesh, probes: Probes) -> str:
    """Shares show in counts, and so does their change."""
    seen = []
    for v1, v2 in ((90, 10), (50, 50)):
        await mesh.apply(ROUTE.format(v1=v1, v2=v2))
        answer = await grpc_calls(probes.globex, SPLIT_CALLS, concurrency=8)
        only(answer, "OK", f"orders at {v1}/{v2}")
        share = v2 / (v1 + v2)
        stray = SIGMAS * math.sqrt(SPLIT_CALLS * share * (1 - share))
        got = answer["versions"].get("v2", 0)
        require(
            abs(got - SPLIT_CALLS * share) <= stray,
            f"at {v1}/{v2} v2 got {got} of {SPLIT_CALLS} calls; expected {SPLIT_CALLS * share:.0f} ± {stray:.0f}",
        )
        seen.append(f"{v1}/{v2}: v2 got {got} of {SPLIT_CALLS}")
    await mesh.apply(ROUTE.format(v1=90, v2=10))
    return "; ".join(seen)


async def rate_limit(mesh: Mesh, probes: Probes) -> str:
    """One tenant gets its limit at one enforcement point, on each data plane; the other tenant is not limited."""
    # All calls to the one instance of v2: one enforcement point, as billing's one Envoy is.
    limits = [RATE.format(service=service, requests=LIMIT_PER_S) for service in ("orders", "billing")]
    load = {"count": int(OFFERED_PER_S * LIMITED_S), "rate": OFFERED_PER_S}
    await mesh.apply("---\n".join([ROUTE.format(v1=0, v2=1), *limits]))
    try:
        # A probe answers one request after the other, so each tenant's planes take turns.
        with mesh.paused("acme-web"):
            (allowed, passed), _ = await asyncio.gather(_limited(probes, load), _unlimited(probes, load))
    finally:
        await mesh.delete("RatePolicy", "platform/orders", "platform/billing")
        await mesh.apply(ROUTE.format(v1=90, v2=10))
    return (
        f"acme offered {OFFERED_PER_S}/s for {LIMITED_S:.0f} s at a limit of {LIMIT_PER_S}/s: "
        f"{allowed} passed on gRPC, {passed} through Envoy; of globex, all did"
    )


async def _limited(probes: Probes, load: dict[str, int]) -> tuple[int, int]:
    """Loads both planes as acme and returns how many calls passed on each."""
    return (
        _within("gRPC", await grpc_calls(probes.acme, **load, concurrency=4), "OK", "RESOURCE_EXHAUSTED"),
        _within("Envoy", await http_calls(probes.acme, **load, concurrency=4), "200", "429"),
    )


async def _unlimited(probes: Probes, load: dict[str, int]) -> None:
    """Loads both planes as globex, which says it were acme; every call must pass."""
    only(await grpc_calls(probes.globex, **load, concurrency=4, metadata=SPOOFED), "OK", "globex to orders")
    only(await http_calls(probes.globex, **load, concurrency=4, headers=SPOOFED), "200", "globex to billing")


def _within(plane: str, answer: dict[str, object], passed: str, limited: str) -> int:
    codes = answer["codes"]
    assert isinstance(codes, dict)  # noqa: S101 - the probe's protocol
    require(set(codes) == {passed, limited}, f"acme on {plane}: expected {passed} and {limited}, got {codes}")
    wanted = LIMIT_PER_S * float(str(answer["duration_s"]))
    got = int(codes[passed])
    require(
        abs(got - wanted) <= TOLERANCE * wanted,
        f"acme on {plane}: {got} calls passed in {answer['duration_s']} s; the limit is {LIMIT_PER_S}/s",
    )
    return got


async def tenant_unspoofable(mesh: Mesh, probes: Probes) -> str:
    """Whatever headers say, a caller is who its certificate says."""
    answer = await grpc_calls(probes.globex, 10, metadata=SPOOFED)
    require(set(answer["tenants"]) == {"globex"}, f"on gRPC the server took globex for {answer['tenants']}")
    answer = await http_calls(probes.globex, 10, headers=SPOOFED)
    require(set(answer["tenants"]) == {"globex"}, f"through Envoy the server took globex for {answer['tenants']}")
    return f"globex sent {', '.join(SPOOFED)} in acme's name; both servers saw globex"
