"""What a rollout is judged by: a line for each service concerned, side and SLO. Pure."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.outcome import CLIENT_ERROR, DENIED, OK, SERVER_ERROR
from meshwarden.controlplane.insight.slo import budget, name_of
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.stage import services_of
from meshwarden.controlplane.rollout.judge import Sample
from meshwarden.sdk.red.histogram import LIMITS_S
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import Rollout, SLOSpec

BUDGET: Final = 0.01
"""The share of calls that may fail of a service without an SLO for that."""
_COUNTED: Final = (OK, CLIENT_ERROR, SERVER_ERROR)


@dataclass(frozen=True)
class Line:
    """Calls that are judged together.

    Attributes:
        service: the service called.
        side: who counts them: where the policy acts.
        slo: the SLO's full name; empty where there is none.
        budget: the share that may be bad, 0 to 1.
        caller: of which tenant they are; empty for all.
        slow: the number of the last bucket of durations that is good enough; None where it matters whether they fail.
        denied: whether those are bad that access policies deny; else they don't count.
    """

    service: Name
    side: "SLOSpec.Side.ValueType"
    slo: str
    budget: float
    caller: str
    slow: int | None
    denied: bool

    @property
    def reporter(self) -> int:
        """The side, as counts of calls have it."""
        return CallStat.SOURCE if self.side == SLOSpec.CALLER else CallStat.DESTINATION

    def sample(self, call: Call) -> Sample:
        """What of a count of calls to the service, by the side, is judged."""
        if self.caller not in ("", call.source_tenant):
            return Sample()
        result = call.outcome
        if self.slow is not None:
            durations = call.durations.items() if result == OK else ()
            slow = sum(count for bucket, count in durations if bucket > self.slow)
            return Sample(sum(count for _, count in durations), slow)
        if result == DENIED and self.denied:
            return Sample(call.count, call.count)
        if result not in _COUNTED:
            return Sample()
        return Sample(call.count, call.count if result == SERVER_ERROR else 0)


def lines_of(rollout: Rollout, mesh: Mesh) -> list[Line]:
    """What a rollout is judged by, in the order of services."""
    services = services_of(rollout, mesh)
    sides = (("RoutePolicy", SLOSpec.CALLER), ("AccessPolicy", SLOSpec.SERVICE))
    found: list[Line] = []
    for kind, side in sides:
        for service in sorted(services[kind]):
            # What lies outside is judged where it is called, and so is who may call it.
            here = SLOSpec.CALLER if (is_outside := mesh.is_external(service)) else side
            is_access = service in services["AccessPolicy"] if is_outside else kind == "AccessPolicy"
            denied = is_access and not rollout.spec.judge.ignore_denied
            found += [line for line in _lines(mesh, service, here, denied=denied) if line not in found]
    return found


def _lines(mesh: Mesh, service: Name, side: "SLOSpec.Side.ValueType", *, denied: bool) -> Iterator[Line]:
    slos: list[Any] = list(mesh.of_service("SLO", service).values())
    if not any(slo.spec.WhichOneof("indicator") == "availability" for slo in slos):
        yield Line(service, side, "", BUDGET, "", None, denied)
    for slo in slos:
        slow = None
        if slo.spec.WhichOneof("indicator") == "latency":
            slow = bisect_left(LIMITS_S, slo.spec.latency.threshold.ToNanoseconds() / 1e9)
        yield Line(service, side, name_of(slo), budget(slo), slo.spec.calling_tenant, slow, denied)
