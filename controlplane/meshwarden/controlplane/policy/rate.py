"""RatePolicy to neutral form, with all defaults filled in."""

from typing import Any, Final, Literal

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Limit, Limits, MethodLimit, Name, Rate
from meshwarden.sdk.unit import Unit, amount_of, unit_of
from meshwarden.v1.resources_pb2 import RatePolicySpec

# How many seconds' calls may come at once, where a policy doesn't say.
MESH_BURST_S: Final = 1.0
POINT_BURST_S: Final = 0.1
_AWAY: Final[dict["RatePolicySpec.WhenAway.ValueType", Literal["keep", "fallback", "deny"]]] = {
    RatePolicySpec.KEEP_LAST: "keep",
    RatePolicySpec.FALLBACK: "fallback",
    RatePolicySpec.DENY: "deny",
}


def limits(mesh: Mesh, service: Name) -> tuple[Limits, ...]:
    """How much each tenant may call a service, by policy, in the order of their names: a call must pass them all."""
    policies = mesh.of_service("RatePolicy", service).items()
    return tuple(of_spec(service, Name(key.tenant, key.name), policy.spec) for key, policy in policies)


def of_spec(service: Name, policy: Name, spec: Any) -> Limits:
    """What a policy says."""
    if spec.scope == RatePolicySpec.POINT:
        found = tuple(Limit(item.tenant, _rate(item, POINT_BURST_S)) for item in spec.limits)
        return Limits(service, found, policy, unit=unit_of(spec))
    found = tuple(_limit(item) for item in spec.limits)
    total = _rate(spec.total, MESH_BURST_S) if spec.HasField("total") else None
    if total is not None and all(limit.tenant != "*" for limit in found):
        found += (Limit("*", total),)
    return Limits(
        service,
        found,
        policy,
        mesh=True,
        total=total,
        away=_AWAY.get(spec.when_away, "keep"),
        fallback=_rate(spec.fallback, MESH_BURST_S) if spec.HasField("fallback") else None,
        shadow=spec.shadow,
        unit=unit_of(spec),
    )


def to_spec(said: Limits) -> RatePolicySpec:
    """The same as a policy that leaves nothing out."""
    spec = RatePolicySpec(service=said.service.name, shadow=said.shadow)
    spec.scope = RatePolicySpec.MESH if said.mesh else RatePolicySpec.POINT
    if said.mesh:
        spec.when_away = next(number for number, away in _AWAY.items() if away == said.away)
    for name, rate in (("total", said.total), ("fallback", said.fallback)):
        if rate is not None:
            _fill(getattr(spec, name), rate, said.unit)
    for limit in said.limits:
        item = spec.limits.add(tenant=limit.tenant, floor=limit.floor, weight=limit.weight)
        _fill(item, limit.rate, said.unit)
        for part in limit.methods:
            _fill(item.methods.add(method=part.method, floor=part.floor, weight=part.weight), part.rate, said.unit)
    return spec


def _fill(item: Any, rate: Rate, unit: Unit) -> None:
    setattr(item, unit, rate.amount)
    item.burst = rate.burst
    item.per.FromNanoseconds(round(rate.per_s * 1e9))


def _limit(item: Any) -> Limit:
    methods = tuple(
        MethodLimit(part.method, _rate(part, MESH_BURST_S), part.floor, part.weight or 1) for part in item.methods
    )
    return Limit(item.tenant, _rate(item, MESH_BURST_S), item.floor, item.weight or 1, methods)


def _rate(item: Any, burst_s: float) -> Rate:
    per_s = (item.per.seconds + item.per.nanos / 1e9) or 1.0
    amount = amount_of(item)
    return Rate(amount, per_s, item.burst or max(1, int(amount / per_s * burst_s)))
