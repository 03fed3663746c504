"""What a rate policy must hold by itself and the schema can't say."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from meshwarden.controlplane.resources.adaptive import adaptive_faults
from meshwarden.sdk.quota.unit import BYTES, CONCURRENT, COST, amount_of, unit_of
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

Faults = Iterator[tuple[str, str]]
"""The path of a field and what is wrong with it."""
MAX_METHODS = 4096
MAX_LIMITS = 4096
MOST_PER = 1_000_000
"""Calls, where they are no period's."""


def rate_faults(spec: RatePolicySpec) -> Faults:
    """Every fault of a policy that keeps the schema's rules."""
    if bool(spec.service) == bool(spec.services):
        yield "spec.service", "is required, or services" if not spec.service else "this or services, not both"
    is_adaptive = spec.HasField("adaptive")
    if not spec.limits and not spec.HasField("total") and not is_adaptive:
        yield "spec.limits", "is required, unless there is a total"
    named = Counter[str]()
    for number, limit in enumerate(spec.limits):
        if named[limit.tenant]:
            yield f"spec.limits[{number}].tenant", f"{limit.tenant} has a limit already"
        named[limit.tenant] += 1
    if is_adaptive:
        yield from adaptive_faults(spec)
        return
    yield from _amount_faults(spec)
    yield from _period_faults(spec)
    yield from _region_faults(spec)
    if spec.scope == RatePolicySpec.POINT:
        yield from _point_faults(spec)
        return
    yield from _away_faults(spec)
    each = "" if spec.period else " at once" if unit_of(spec) == CONCURRENT else "/s"
    for number, limit in enumerate(spec.limits):
        yield from _limit_faults(f"spec.limits[{number}]", limit, each)
    if spec.HasField("total"):
        limits = ((f"spec.limits[{number}]", limit) for number, limit in enumerate(spec.limits))
        yield from _floors(limits, spec.total, "total", each)
    parts: list[Any] = [part for limit in spec.limits for part in (limit, *limit.services)]
    if sum(len(part.methods) + sum(len(method.methods) for method in part.methods) for part in parts) > MAX_METHODS:
        yield "spec.limits", f"more than {MAX_METHODS} limits on methods"
    if len(parts) > MAX_LIMITS:
        yield "spec.limits", f"more than {MAX_LIMITS} limits on tenants and services"
    for number, limit in enumerate(spec.limits) if spec.service else ():
        if limit.services:
            yield f"spec.limits[{number}].services", "only in a policy of several services"


def _amount_faults(spec: RatePolicySpec) -> Faults:
    """Every limit has an amount, and all are of one unit."""
    unit = unit_of(spec)
    for path, rate in _rates(spec):
        named = rate.WhichOneof("amount")
        if named is None:
            yield f"{path}.{unit}", "is required"
        elif named != unit:
            yield f"{path}.{named}", f"this policy counts {unit}: all its amounts are of one unit"
        if unit == CONCURRENT:
            for name in ("per", "burst"):
                if getattr(rate, name) if name == "burst" else rate.HasField(name):
                    yield f"{path}.{name}", "calls at once have none"
    if spec.reserve and unit != COST:
        yield "spec.reserve", "only where costs are counted"
    for path, rate in _rates(spec):
        if unit == COST and spec.reserve > _burst(rate, spec.scope) and path != "spec.fallback":
            yield "spec.reserve", f"{spec.reserve} is above the burst of {path}: what declares nothing would never pass"
            return


def _burst(rate: Any, scope: "RatePolicySpec.Scope.ValueType") -> float:
    """How much may come at once."""
    seconds = Fraction(1, 10) if scope == RatePolicySpec.POINT else 1
    return float(rate.burst) or max(1.0, float(per_s(rate) * seconds))


def _period_faults(spec: RatePolicySpec) -> Faults:
    """What goes only with amounts for a period, and what doesn't go with them."""
    if not spec.period:
        if spec.time_zone:
            yield "spec.timeZone", "only with period"
        for path, rate in _rates(spec):
            if rate.requests > MOST_PER:
                yield f"{path}.requests", f"more than {MOST_PER} only with period"
        return
    if unit_of(spec) == CONCURRENT:
        yield "spec.period", "calls at once are no amount that is used up"
    elif unit_of(spec) == BYTES:
        yield "spec.period", "a stream that has begun can't wait until the next period with what it may not send"
    if spec.time_zone and not is_zone(spec.time_zone):
        yield "spec.timeZone", f"{spec.time_zone} is no time zone: an IANA name, as Europe/Berlin"
    if spec.scope == RatePolicySpec.POINT:
        yield "spec.scope", "POINT does not go with period: its amounts are the whole mesh's"
    if spec.when_away == RatePolicySpec.FALLBACK:
        yield "spec.whenAway", "FALLBACK does not go with period: nobody would count what it lets through"
    for path, rate in _rates(spec):
        for name in ("per", "burst"):
            if rate.HasField(name) if name == "per" else getattr(rate, name):
                yield f"{path}.{name}", "does not go with period"
        if "criticality" in rate.DESCRIPTOR.fields_by_name and rate.criticality:
            yield f"{path}.criticality", "does not go with period: nothing is saved up of it"
        if "weight" in rate.DESCRIPTOR.fields_by_name and rate.HasField("weight"):
            yield f"{path}.weight", "does not go with period: who asks first is given first; a floor keeps its part"


def _region_faults(spec: RatePolicySpec) -> Faults:
    """Each region has a part once, and something of what can't be divided further."""
    weights: dict[str, int] = {}
    for number, part in enumerate(spec.regions):
        if part.region in weights:
            yield f"spec.regions[{number}].region", f"{part.region} has a part already"
        weights[part.region] = part.weight
    if not weights or (unit_of(spec) != CONCURRENT and not spec.period):
        return
    least = min(weights, key=lambda region: weights[region])
    for path, rate in _rates(spec):
        if path != "spec.fallback" and amount_of(rate) * weights[least] < sum(weights.values()):
            yield f"{path}.{rate.WhichOneof('amount')}", f"{amount_of(rate)} are too few: {least} would have none"


def foreign_region(spec: RatePolicySpec, region: str) -> Faults:
    """The fault of a policy in which the region that it is applied in has no part."""
    if spec.regions and all(part.region != region for part in spec.regions):
        yield "spec.regions", f"this is region {region}, which has no part"


def is_zone(name: str) -> bool:
    """Whether there is a time zone of that IANA name here."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # as a directory's name
        return False
    return True


def _rates(spec: RatePolicySpec) -> Iterator[tuple[str, Any]]:
    """All that has an amount, with its path."""
    for name in ("total", "fallback"):
        if spec.HasField(name):
            yield f"spec.{name}", getattr(spec, name)
    for number, limit in enumerate(spec.limits):
        yield f"spec.limits[{number}]", limit
        yield from _parts(f"spec.limits[{number}]", limit, "methods")
        for path, part in _parts(f"spec.limits[{number}]", limit, "services"):
            yield path, part
            yield from _parts(path, part, "methods")


def _point_faults(spec: RatePolicySpec) -> Faults:
    """What enforcement points can't do each by itself."""
    text = "only with scope MESH"
    for name in ("total", "fallback"):
        if spec.HasField(name):
            yield f"spec.{name}", text
    for name in ("services", "regions"):
        if getattr(spec, name):
            yield f"spec.{name}", text
    if spec.when_away:
        yield "spec.whenAway", text
    if spec.shadow:
        yield "spec.shadow", text
    for number, limit in enumerate(spec.limits):
        for name in ("floor", "weight", "methods", "services"):
            if getattr(limit, name) if name != "weight" else limit.HasField("weight"):
                yield f"spec.limits[{number}].{name}", text


def _away_faults(spec: RatePolicySpec) -> Faults:
    if spec.when_away == RatePolicySpec.FALLBACK and not spec.HasField("fallback"):
        yield "spec.fallback", "is required with whenAway FALLBACK"
    elif spec.when_away != RatePolicySpec.FALLBACK and spec.HasField("fallback"):
        yield "spec.fallback", "only with whenAway FALLBACK"


def _limit_faults(path: str, limit: RateLimit, each: str) -> Faults:
    if limit.floor > amount_of(limit):
        yield f"{path}.floor", f"{limit.floor} is above the limit of {amount_of(limit)}"
    elif limit.floor and limit.tenant == "*":
        yield f"{path}.floor", "each tenant not named would have one, without bound: name those that shall"
    if limit.methods and limit.services:
        yield f"{path}.methods", "these or services: methods of one service stand in its part"
    yield from _part_faults(path, limit, "methods", "tenant's", each)
    yield from _part_faults(path, limit, "services", "tenant's", each)
    for number, part in enumerate(limit.services):
        yield from _part_faults(f"{path}.services[{number}]", part, "methods", "service's", each)


def _part_faults(path: str, whole: Any, field: str, whose: str, each: str) -> Faults:
    """The faults of the parts of a limit, by method or by service; their amounts are `each`: "/s", or none."""
    found = list(_parts(path, whole, field))
    yield from _method_faults(found) if field == "methods" else _name_faults(found)
    for place, part in found:
        if per_s(part) > per_s(whole):
            yield (
                f"{place}.{part.WhichOneof('amount')}",
                f"{_said(part)}{each} are above the {whose} {_said(whole)}{each}",
            )
        if part.floor > amount_of(part):
            yield f"{place}.floor", f"{part.floor} is above the limit of {amount_of(part)}"
    yield from _floors(iter(found), whole, f"{whose} limit", each)


def _name_faults(parts: list[tuple[str, Any]]) -> Faults:
    """Each service has one part."""
    named = set[str]()
    for place, part in parts:
        if part.service in named:
            yield f"{place}.service", f"{part.service} has a limit already"
        named.add(part.service)


def _method_faults(parts: list[tuple[str, Any]]) -> Faults:
    """Each part is a method's or a class's, and each method and class is in one."""
    named = set[str]()
    for place, part in parts:
        if part.method and part.call_class:
            yield f"{place}.method", "this or class, not both"
        elif not (part.method or part.call_class):
            yield f"{place}.method", "is required, or class"
        if part.call_class and not part.methods:
            yield f"{place}.methods", "is required: what the class is of"
        elif part.methods and not part.call_class:
            yield f"{place}.methods", "only with class"
        fields = [("method", part.method), ("class", part.call_class)]
        fields += [(f"methods[{number}]", method) for number, method in enumerate(part.methods)]
        for field, name in fields:
            if name and name in named:
                yield f"{place}.{field}", f"{name} has a limit already"
            named.add(name)


def _parts(path: str, whole: Any, field: str) -> Iterator[tuple[str, Any]]:
    """The parts of a limit with their paths."""
    return ((f"{path}.{field}[{number}]", part) for number, part in enumerate(getattr(whole, field)))


def _floors(parts: Iterator[tuple[str, Any]], whole: Any, name: str, each: str) -> Faults:
    """Names the first part whose floor is more than what the floors before it leave of the whole."""
    together = Fraction(0)
    for path, part in parts:
        together += per_s(part, part.floor)
        if together > per_s(whole):
            text = f"with the floors before it {float(together):g}{each}, above the {name} of {_said(whole)}{each}"
            yield f"{path}.floor", text
            return


def per_s(rate: Any, amount: int | None = None) -> Fraction:
    """What a rate is for a second, or so large an `amount` in its time."""
    period = Fraction(rate.per.seconds) + Fraction(rate.per.nanos, 10**9)
    return Fraction(amount_of(rate) if amount is None else amount) / (period or 1)


def _said(rate: Any) -> str:
    return f"{float(per_s(rate)):g}"
