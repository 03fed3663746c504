"""How gRPC's own client chooses an endpoint, as far as it can, and by what is equivalent where it can't.

Source: gRFC A32 (circuit breaking), A42 (ring hash), A48 (least request), A50 (outlier detection), A52 (a list of
policies of which a client takes the first that it knows), A55 (stateful sessions).
"""

from dataclasses import replace
from typing import Any, Final

from meshwarden.controlplane.policy.choice import Balancing, Choice, Outliers
from meshwarden.controlplane.policy.envoy.balance import failure_percentage, session_state
from meshwarden.controlplane.policy.variant import Feature, Kind, Variant

_POLICIES: Final = "type.googleapis.com/envoy.extensions.load_balancing_policies."
_SESSION: Final = "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
# Without it Node's client looks for what it needs to judge by the rate of success, and crashes.
_NO_OUTLIERS: Final = {"enforcing_success_rate": 0}
_MAJORITY_PERCENT: Final = 50
"""Of calls that fail, where a policy counts failures in a row, which gRPC doesn't."""


def cluster_fields(said: Choice, variant: Variant, endpoints: int) -> dict[str, Any]:
    """Fields of an `envoy.config.cluster.v3.Cluster`.

    Args:
        said: how to choose.
        variant: of the client.
        endpoints: how many there are.
    """
    balancing = _equivalent(said, variant).balancing
    found: dict[str, Any] = {"lb_policy": "ROUND_ROBIN"}
    if balancing.algorithm == "ring_hash":
        found = {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": balancing.ring}}
    elif balancing.algorithm == "least_request":
        found["load_balancing_policy"] = _least_request(balancing.among)
    if said.affinity is not None and variant.can(Feature.SESSION):
        found["common_lb_config"] = {"override_host_status": {"statuses": ["UNKNOWN", "HEALTHY"]}}
    if variant.kind is Kind.NODE:
        # It does not see that a cluster has got one that had none.
        found["outlier_detection"] = dict(_NO_OUTLIERS)
    if said.outliers is not None and (bound := share(said.outliers.percent, endpoints)):
        found["outlier_detection"] = dict(_NO_OUTLIERS) | _outliers(said.outliers, bound)
    if said.breaker.requests:
        found["circuit_breakers"] = {"thresholds": [{"max_requests": said.breaker.requests}]}
    return found


def route_fields(said: Choice, variant: Variant) -> dict[str, Any]:
    """Fields of an `envoy.config.route.v3.RouteAction`."""
    one = _equivalent(said, variant).balancing
    if one.algorithm != "ring_hash":
        return {}
    if one.hash_on == "header":
        return {"hash_policy": [{"header": {"header_name": one.name}}]}
    if one.hash_on == "cookie":
        pattern, value = f"^(.*; *)?{one.name}=([^;]*).*$", "\\2"
        if variant.kind in (Kind.GO, Kind.JAVA):
            # They take a reference to a group for text, which all calls would have in common (seen with Go's 1.85.0).
            # So what is not the value goes.
            pattern, value = f"^(.*; *)?{one.name}=|;.*$", ""
        rewrite = {"pattern": {"regex": pattern}, "substitution": value}
        return {"hash_policy": [{"header": {"header_name": "cookie", "regex_rewrite": rewrite}}]}
    return {"hash_policy": [{"filter_state": {"key": "io.grpc.channel_id"}}]}


def filters(said: Choice, variant: Variant) -> list[dict[str, Any]]:
    """The HTTP filters of who calls, before the router."""
    if said.affinity is None or not variant.can(Feature.SESSION):
        return []
    return [{"name": "session", "typed_config": {"@type": _SESSION, "session_state": session_state(said.affinity)}}]


def share(percent: int, endpoints: int) -> int:
    """The bound for gRPC under which never more than `percent` of so many endpoints are left out; 0 if none may be.

    Envoy asks whether one more would be too many, gRPC whether there are as many already.
    """
    most = endpoints * percent // 100
    return 100 * most // endpoints if most else 0


def _equivalent(said: Choice, variant: Variant) -> Choice:
    """A session, for who has none: calls with the same cookie go to one endpoint."""
    if said.affinity is None or variant.can(Feature.SESSION):
        return said
    name = said.affinity.name
    return replace(said, balancing=Balancing("ring_hash", hash_on="cookie", name=name, cookie=said.affinity))


def _least_request(among: int) -> dict[str, Any]:
    """Least request for who has it, in turn for all others."""
    ways = [("least_request", "LeastRequest", {"choice_count": among}), ("round_robin", "RoundRobin", {})]
    picking = [
        {"typed_extension_config": {"name": name, "typed_config": {"@type": f"{_POLICIES}{name}.v3.{message}", **more}}}
        for name, message, more in ways
    ]
    by_locality = {
        "@type": f"{_POLICIES}wrr_locality.v3.WrrLocality",
        "endpoint_picking_policy": {"policies": picking},
    }
    return {"policies": [{"typed_extension_config": {"name": "wrr_locality", "typed_config": by_locality}}]}


def _outliers(said: Outliers, percent: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "interval": said.interval,
        "base_ejection_time": said.base,
        "max_ejection_time": said.longest,
        "max_ejection_percent": percent,
    }
    if said.share is not None:
        return found | failure_percentage(said.share.threshold, said.share.volume, said.share.hosts)
    return found | failure_percentage(_MAJORITY_PERCENT, said.in_a_row, 1)
