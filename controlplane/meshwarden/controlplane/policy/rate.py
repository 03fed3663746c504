"""RatePolicy to neutral form, with all defaults filled in."""

from typing import Any, Final, Literal

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Adaptive, Limit, Limits, MethodLimit, Name, Rate, ServiceLimit
from meshwarden.controlplane.resources.adaptive import bounds
from meshwarden.controlplane.resources.reach import full, width
from meshwarden.sdk.quota.part import key_of
from meshwarden.sdk.quota.unit import CONCURRENT, COST, Unit, amount_of, unit_of
from meshwarden.v1.resources_pb2 import RatePolicySpec

# How many seconds' calls may come at once, where a policy doesn't say.
MESH_BURST_S: Final = 1.0
POINT_BURST_S: Final = 0.1
_AWAY: Final[dict["RatePolicySpec.WhenAway.ValueType", Literal["keep", "fallback", "deny"]]] = {
    RatePolicySpec.KEEP_LAST: "keep",
    RatePolicySpec.FALLBACK: "fallback",
    RatePolicySpec.DENY: "deny",
}
_PERIODS: Final[dict["RatePolicySpec.Period.ValueType", Literal["HOUR", "DAY", "MONTH"]]] = {
    RatePolicySpec.HOUR: "HOUR",
    RatePolicySpec.DAY: "DAY",
    RatePolicySpec.MONTH: "MONTH",
}


def limits(mesh: Mesh, service: Name) -> tuple[Limits, ...]:
    """How much each tenant may call a service, by policy, the narrowest first: a call must pass them all."""
    return tuple(
        of_spec(Name(key.tenant, key.name), policy.spec).at(service)
        for key, policy in mesh.rate_policies(service).items()
    )


def of_policy(mesh: Mesh, policy: Name) -> Limits | None:
    """What a policy says of all the services that it is about; None if there is none of that name."""
    found = mesh.find("RatePolicy", *policy)
    return of_spec(policy, found.spec) if found is not None else None


def of_spec(policy: Name, spec: Any) -> Limits:
    """What a policy says."""
    if spec.HasField("adaptive"):
        found = tuple(
            Limit(item.tenant, Rate(item.concurrent, 1.0, 0), weight=item.weight or 1) for item in spec.limits
        )
        return Limits(policy, found, adaptive=Adaptive(*bounds(spec)))
    if spec.scope == RatePolicySpec.POINT:
        # Calls at once have no rate, of which a part could be their burst.
        burst_s = 1.0 if unit_of(spec) == CONCURRENT else POINT_BURST_S
        found = tuple(Limit(item.tenant, _rate(item, burst_s)) for item in spec.limits)
        return Limits(policy, found, unit=unit_of(spec), reserve=spec.reserve or 1)
    found = tuple(_limit(policy.tenant, item) for item in spec.limits)
    total = _mesh_rate(spec.total) if spec.HasField("total") else None
    if total is not None and all(limit.tenant != "*" for limit in found):
        found += (Limit("*", total),)
    return Limits(
        policy,
        found,
        width(policy.tenant, spec),
        mesh=True,
        total=total,
        away=_AWAY.get(spec.when_away, "keep"),
        fallback=_mesh_rate(spec.fallback) if spec.HasField("fallback") else None,
        shadow=spec.shadow,
        unit=unit_of(spec),
        reserve=spec.reserve or 1,
        period=_PERIODS.get(spec.period),
        zone=spec.time_zone or "UTC",
        regions=tuple(sorted((part.region, part.weight) for part in spec.regions)),
    )


def to_spec(said: Limits, service: Name) -> RatePolicySpec:
    """The same as a policy of that service that leaves nothing out."""
    reserve = said.reserve if said.unit == COST else 0
    spec = RatePolicySpec(service=service.name, shadow=said.shadow, reserve=reserve)
    spec.scope = RatePolicySpec.MESH if said.mesh else RatePolicySpec.POINT
    if said.adaptive is not None:
        spec.adaptive.min, spec.adaptive.max = said.adaptive.least, said.adaptive.most
        for limit in said.limits:
            spec.limits.add(tenant=limit.tenant, weight=limit.weight, concurrent=limit.rate.amount or None)
        return spec
    if said.mesh:
        spec.when_away = next(number for number, away in _AWAY.items() if away == said.away)
    if said.period is not None:
        spec.period, spec.time_zone = RatePolicySpec.Period.Value(said.period), said.zone
    for name, rate in (("total", said.total), ("fallback", said.fallback)):
        if rate is not None:
            _fill(getattr(spec, name), rate, said.unit)
    for limit in said.limits:
        item = spec.limits.add(tenant=limit.tenant, floor=limit.floor, weight=limit.weight)
        _fill(item, limit.rate, said.unit)
        for part in limit.methods:
            made = item.methods.add(floor=part.floor, weight=part.weight, methods=part.of)
            setattr(made, "call_class" if part.of else "method", part.method)
            made.criticality = part.criticality  # type: ignore[assignment]  # a number of that enumeration
            _fill(made, part.rate, said.unit)
    return spec


def _fill(item: Any, rate: Rate, unit: Unit) -> None:
    setattr(item, unit, rate.amount)
    item.burst = rate.burst
    item.per.FromNanoseconds(round(rate.per_s * 1e9))


def _limit(owner: str, item: Any) -> Limit:
    services = tuple(
        ServiceLimit(Name(*full(owner, part.service)), _mesh_rate(part), part.floor, part.weight or 1, _methods(part))
        for part in item.services
    )
    return Limit(item.tenant, _mesh_rate(item), item.floor, item.weight or 1, _methods(item), services)


def _methods(item: Any) -> tuple[MethodLimit, ...]:
    return tuple(
        MethodLimit(key_of(part), _mesh_rate(part), part.floor, part.weight or 1, part.criticality, tuple(part.methods))
        for part in item.methods
    )


def _mesh_rate(item: Any) -> Rate:
    return _rate(item, MESH_BURST_S)


def _rate(item: Any, burst_s: float) -> Rate:
    per_s = (item.per.seconds + item.per.nanos / 1e9) or 1.0
    amount = amount_of(item)
    return Rate(amount, per_s, item.burst or max(1, int(amount / per_s * burst_s)))
