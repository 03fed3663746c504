"""How an Envoy chooses an endpoint: fields of its clusters and routes, and the filters that they need."""

from typing import Any, Final

from meshwarden.controlplane.policy.choice import Balancing, Breaker, Choice, Cookie, Outliers
from meshwarden.controlplane.policy.neutral import Name, spiffe_of

_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http."
_SOURCE: Final = "meshwarden.source"
CALLER: Final = {
    "name": "caller",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
        "key": _SOURCE,
    },
}
"""What a matcher looks at: the SPIFFE ID of who calls."""
_SESSION: Final = "session"
_PARALLEL: Final = {
    "max_connections": 4096,
    "max_pending_requests": 16_384,
    "max_requests": 16_384,
}
# gRPC goes on to the next priority when it can't connect to anybody of the first. Envoy does so when all of it are left
# out, and a call that meets it earlier when it is tried again.
_UNREACHABLE: Final = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 2,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_consecutive_5xx": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
    "interval": "1s",
    "base_ejection_time": "1s",
    "max_ejection_time": "10s",
    "max_ejection_percent": 100,
}
_NEXT_PRIORITY: Final = {
    "name": "next",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
        "update_frequency": 1,
    },
}


def cluster_fields(said: Choice, retry_budget: dict[str, Any]) -> dict[str, Any]:
    """Fields of an `envoy.config.cluster.v3.Cluster`; the budget holds where the choice has no bound on retries."""
    # Envoy would gather changes of health for a second, and call the dead when too many are.
    common: dict[str, Any] = {"update_merge_window": "0s", "healthy_panic_threshold": {"value": 0}}
    if said.affinity is not None:
        common["override_host_status"] = {"statuses": ["UNKNOWN", "HEALTHY"]}
    if said.near:
        common["locality_weighted_lb_config"] = {}
    found = {
        **_policy(said.balancing),
        "common_lb_config": common,
        "circuit_breakers": {"thresholds": [_thresholds(said.breaker, retry_budget)]},
    }
    if said.outliers is not None:
        found["outlier_detection"] = _outliers(said.outliers)
    elif said.near:
        found["outlier_detection"] = _UNREACHABLE
    return found


def retry_fields(said: Choice) -> dict[str, Any]:
    """Fields of an `envoy.config.route.v3.RetryPolicy`."""
    return {"retry_priority": _NEXT_PRIORITY} if said.near else {}


def route_fields(said: Choice) -> dict[str, Any]:
    """Fields of an `envoy.config.route.v3.RouteAction`."""
    one = said.balancing
    if one.algorithm != "ring_hash":
        return {}
    if one.hash_on == "header":
        return {"hash_policy": [{"header": {"header_name": one.name}}]}
    if one.cookie is not None:
        given = {"name": one.cookie.name, "path": one.cookie.path}
        # With a life, Envoy gives one out to who has none.
        return {"hash_policy": [{"cookie": given | ({"ttl": one.cookie.ttl} if one.cookie.ttl else {})}]}
    return {"hash_policy": [{"filter_state": {"key": _SOURCE}}]}


def host_fields(said: Choice) -> dict[str, Any]:
    """Fields of an `envoy.config.route.v3.VirtualHost`."""
    if said.affinity is None:
        return {}
    typed = {
        "@type": f"{_TYPE}stateful_session.v3.StatefulSessionPerRoute",
        "stateful_session": {"session_state": session_state(said.affinity)},
    }
    return {"typed_per_filter_config": {_SESSION: typed}}


def filters(service: Name, trust_domain: str) -> list[dict[str, Any]]:
    """The HTTP filters of who calls: say who that is, to hash on it, and keep sessions where a route has them."""
    return [
        caller_filter(service, trust_domain),
        {"name": _SESSION, "typed_config": {"@type": f"{_TYPE}stateful_session.v3.StatefulSession"}},
    ]


def caller_filter(service: Name, trust_domain: str) -> dict[str, Any]:
    """Says who calls, where an Envoy takes the calls of one workload: `CALLER` looks at that."""
    source = {
        "object_key": _SOURCE,
        "factory_key": "envoy.hashable_string",
        "format_string": {"text_format_source": {"inline_string": spiffe_of(service, trust_domain)}},
    }
    return {
        "name": "source",
        "typed_config": {"@type": f"{_TYPE}set_filter_state.v3.Config", "on_request_headers": [source]},
    }


def session_state(cookie: Cookie) -> dict[str, Any]:
    """The extension that keeps a session's endpoint in a cookie; gRPC takes the same."""
    given = {"name": cookie.name, "path": cookie.path} | ({"ttl": cookie.ttl} if cookie.ttl else {})
    return {
        "name": "envoy.http.stateful_session.cookie",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
            "cookie": given,
        },
    }


def _policy(one: Balancing) -> dict[str, Any]:
    if one.algorithm == "least_request":
        return {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": one.among}}
    if one.algorithm == "ring_hash":
        return {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": one.ring}}
    return {"lb_policy": one.algorithm.upper()}


def _thresholds(said: Breaker, retry_budget: dict[str, Any]) -> dict[str, Any]:
    # With a budget the bound would not count.
    found: dict[str, Any] = dict(_PARALLEL) if said.retries else {**_PARALLEL, "retry_budget": retry_budget}
    given = {
        "max_connections": said.connections,
        "max_pending_requests": said.pending,
        "max_requests": said.requests,
        "max_retries": said.retries,
    }
    return found | {name: bound for name, bound in given.items() if bound}


def _outliers(said: Outliers) -> dict[str, Any]:
    found: dict[str, Any] = {
        "interval": said.interval,
        "base_ejection_time": said.base,
        "max_ejection_time": said.longest,
        "max_ejection_percent": said.percent,
        # What nobody asked for.
        "enforcing_success_rate": 0,
        "enforcing_consecutive_5xx": 100 if said.in_a_row else 0,
    }
    if said.in_a_row:
        found["consecutive_5xx"] = said.in_a_row
    if said.share is not None:
        found |= failure_percentage(said.share.threshold, said.share.volume, said.share.hosts)
    return found


def failure_percentage(threshold: int, volume: int, hosts: int) -> dict[str, Any]:
    """Fields of an `OutlierDetection`, as both dialects have them."""
    return {
        "enforcing_failure_percentage": 100,
        "failure_percentage_threshold": threshold,
        "failure_percentage_request_volume": volume,
        "failure_percentage_minimum_hosts": hosts,
    }
