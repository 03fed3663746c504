"""What a rate policy must hold by itself and the schema can't say."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from meshwarden.sdk.unit import amount_of, unit_of
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

Faults = Iterator[tuple[str, str]]
"""The path of a field and what is wrong with it."""
MAX_METHODS = 4096


def rate_faults(spec: RatePolicySpec) -> Faults:
    """Every fault of a policy that keeps the schema's rules."""
    if not spec.limits and not spec.HasField("total"):
        yield "spec.limits", "is required, unless there is a total"
    named = Counter[str]()
    for number, limit in enumerate(spec.limits):
        if named[limit.tenant]:
            yield f"spec.limits[{number}].tenant", f"{limit.tenant} has a limit already"
        named[limit.tenant] += 1
    yield from _amount_faults(spec)
    if spec.scope == RatePolicySpec.POINT:
        yield from _point_faults(spec)
        return
    yield from _away_faults(spec)
    for number, limit in enumerate(spec.limits):
        yield from _limit_faults(f"spec.limits[{number}]", limit)
    if spec.HasField("total"):
        limits = ((f"spec.limits[{number}]", limit) for number, limit in enumerate(spec.limits))
        yield from _floors(limits, spec.total, "total")
    if sum(len(limit.methods) for limit in spec.limits) > MAX_METHODS:
        yield "spec.limits", f"more than {MAX_METHODS} limits on methods"


def _amount_faults(spec: RatePolicySpec) -> Faults:
    """Every limit has an amount, and all are of one unit."""
    unit = unit_of(spec)
    for path, rate in _rates(spec):
        named = rate.WhichOneof("amount")
        if named is None:
            yield f"{path}.{unit}", "is required"
        elif named != unit:
            yield f"{path}.{named}", f"this policy counts {unit}: all its amounts are of one unit"


def _rates(spec: RatePolicySpec) -> Iterator[tuple[str, Any]]:
    """All that has an amount, with its path."""
    for name in ("total", "fallback"):
        if spec.HasField(name):
            yield f"spec.{name}", getattr(spec, name)
    for number, limit in enumerate(spec.limits):
        yield f"spec.limits[{number}]", limit
        for index, part in enumerate(limit.methods):
            yield f"spec.limits[{number}].methods[{index}]", part


def _point_faults(spec: RatePolicySpec) -> Faults:
    """What enforcement points can't do each by itself."""
    text = "only with scope MESH"
    for name in ("total", "fallback"):
        if spec.HasField(name):
            yield f"spec.{name}", text
    if spec.when_away:
        yield "spec.whenAway", text
    if spec.shadow:
        yield "spec.shadow", text
    for number, limit in enumerate(spec.limits):
        for name in ("floor", "weight", "methods"):
            if getattr(limit, name) if name != "weight" else limit.HasField("weight"):
                yield f"spec.limits[{number}].{name}", text


def _away_faults(spec: RatePolicySpec) -> Faults:
    if spec.when_away == RatePolicySpec.FALLBACK and not spec.HasField("fallback"):
        yield "spec.fallback", "is required with whenAway FALLBACK"
    elif spec.when_away != RatePolicySpec.FALLBACK and spec.HasField("fallback"):
        yield "spec.fallback", "only with whenAway FALLBACK"


def _limit_faults(path: str, limit: RateLimit) -> Faults:
    if limit.floor > amount_of(limit):
        yield f"{path}.floor", f"{limit.floor} is above the limit of {amount_of(limit)}"
    elif limit.floor and limit.tenant == "*":
        yield f"{path}.floor", "each tenant not named would have one, without bound: name those that shall"
    named = set[str]()
    for number, part in enumerate(limit.methods):
        place = f"{path}.methods[{number}]"
        if part.method in named:
            yield f"{place}.method", f"{part.method} has a limit already"
        named.add(part.method)
        if per_s(part) > per_s(limit):
            yield f"{place}.{part.WhichOneof('amount')}", f"{_said(part)} are above the tenant's {_said(limit)}"
        if part.floor > amount_of(part):
            yield f"{place}.floor", f"{part.floor} is above the limit of {amount_of(part)}"
    parts = ((f"{path}.methods[{number}]", part) for number, part in enumerate(limit.methods))
    yield from _floors(parts, limit, "tenant's limit")


def _floors(parts: Iterator[tuple[str, Any]], whole: Any, name: str) -> Faults:
    """Names the first part whose floor is more than what the floors before it leave of the whole."""
    together = Fraction(0)
    for path, part in parts:
        together += per_s(part, part.floor)
        if together > per_s(whole):
            text = f"with the floors before it {float(together):g}/s, above the {name} of {_said(whole)}"
            yield f"{path}.floor", text
            return


def per_s(rate: Any, amount: int | None = None) -> Fraction:
    """What a rate is for a second, or so large an `amount` in its time."""
    period = Fraction(rate.per.seconds) + Fraction(rate.per.nanos, 10**9)
    return Fraction(amount_of(rate) if amount is None else amount) / (period or 1)


def _said(rate: Any) -> str:
    return f"{float(per_s(rate)):g}/s"
