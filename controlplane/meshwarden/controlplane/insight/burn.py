"""How fast error budgets burn at this moment. Pure.

Of each SLO the calls of the last window, the bad ones among them, and by how many times too fast these spend the
budget: what Prometheus' rules (`insight.slo`) hold over hours and days, for somebody who looks now.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final

from meshwarden.controlplane.gather.graph.graph import Counted
from meshwarden.controlplane.gather.outcome import CLIENT_ERROR, OK, SERVER_ERROR
from meshwarden.controlplane.insight.slo import budget, name_of
from meshwarden.sdk.red.histogram import LIMITS_S
from meshwarden.v1.console_service_pb2 import MeshObjective
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import SLO, SLOSpec

# What a policy refused is no call that the service could have taken.
_COUNTED: Final = (OK, CLIENT_ERROR, SERVER_ERROR)


def burns(slos: Iterable[SLO], counted: Iterable[Counted]) -> list[MeshObjective]:
    """How each SLO does, in their order.

    Args:
        slos: the objectives.
        counted: what was counted of the calls to their services.
    """
    by_service: dict[str, list[Counted]] = {}
    for one in counted:
        by_service.setdefault(one.destination, []).append(one)
    return [_burn(slo, by_service) for slo in slos]


def _burn(slo: SLO, by_service: Mapping[str, list[Counted]]) -> MeshObjective:
    spec = slo.spec
    service = f"{slo.metadata.tenant}/{spec.service}"
    side = CallStat.DESTINATION if spec.side == SLOSpec.SERVICE else CallStat.SOURCE
    calls_per_s = bad_per_s = 0.0
    for one in by_service.get(service, ()):
        if one.side == side and spec.calling_tenant in ("", one.source.partition("/")[0]):
            calls, bad = _calls(spec, one)
            calls_per_s += calls / one.span_s
            bad_per_s += bad / one.span_s
    told = MeshObjective(slo=name_of(slo), service=service, objective=spec.objective, calls_per_s=calls_per_s)
    if bad_per_s:
        told.bad_per_s, told.burn = bad_per_s, bad_per_s / calls_per_s / budget(slo)
    return told


def _calls(spec: SLOSpec, one: Counted) -> tuple[int, int]:
    """How many calls an objective is about, and how many of them were bad.

    Of latency these are all calls that took a time, since times are not kept by what a call came to.
    """
    if spec.WhichOneof("indicator") == "availability":
        return sum(one.outcomes.get(result, 0) for result in _COUNTED), one.outcomes.get(SERVER_ERROR, 0)
    last = bisect_left(LIMITS_S, spec.latency.threshold.ToNanoseconds() / 1e9)
    slow = sum(count for bucket, count in one.durations.items() if bucket > last)
    return sum(one.durations.values()), slow
