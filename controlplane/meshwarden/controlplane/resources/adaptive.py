"""What a rate policy must hold whose limit each server finds by itself."""

from collections.abc import Iterator
from typing import Final

from meshwarden.v1.resources_pb2 import RatePolicySpec

LEAST_CALLS = 4
MOST_CALLS = 1000
"""Between which the limit is found, where a policy doesn't say."""
_OF_PART: Final = ("tenant", "weight", "concurrent")


def adaptive_faults(spec: RatePolicySpec) -> Iterator[tuple[str, str]]:
    """The fields that make no sense, and why."""
    least, most = bounds(spec)
    if least > most:
        yield "spec.adaptive.max", f"{most} is below min, {least}"
    if spec.scope != RatePolicySpec.POINT:
        yield "spec.scope", "must be POINT: what a server can do with, it finds by itself"
    text = "not with adaptive: what a server takes is found, not said"
    for name in ("total", "fallback"):
        if spec.HasField(name):
            yield f"spec.{name}", text
    fields = {"services": spec.services, "whenAway": spec.when_away, "shadow": spec.shadow}
    fields |= {"period": spec.period, "timeZone": spec.time_zone, "reserve": spec.reserve, "regions": spec.regions}
    for name, given in fields.items():
        if given:
            yield f"spec.{name}", text
    for number, limit in enumerate(spec.limits):
        for field, _ in limit.ListFields():
            if field.name not in _OF_PART:
                text = "with adaptive a tenant has a weight, a ceiling (concurrent) and nothing else"
                yield f"spec.limits[{number}].{field.name}", text


def bounds(spec: RatePolicySpec) -> tuple[int, int]:
    """The least and the most that the limit may be."""
    least = spec.adaptive.min or LEAST_CALLS
    return least, spec.adaptive.max or max(least, MOST_CALLS)
