"""Routes in the form that both dialects take: `envoy.config.route.v3.Route` in JSON form."""

from typing import Any

from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Header, Method, Name, Route, Rule


def routes(route: Route, extra: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The routes of a service's calls, in order; the last fits every call.

    Args:
        route: where the calls go.
        extra: what each route's action says beside where it leads.
    """
    return [
        {"match": match(method, rule.headers), "route": {**action(route.service, rule), **(extra or {})}}
        for rule in route.rules
        for method in rule.methods or (ANY_METHOD,)
    ]


def match(method: Method, headers: tuple[Header, ...] = ()) -> dict[str, Any]:
    """An `envoy.config.route.v3.RouteMatch`, in JSON form."""
    found: dict[str, Any] = {"prefix" if method.prefix else "path": method.path}
    conditions = [_header(header) for header in headers]
    if method.verb:
        conditions.append({"name": ":method", "string_match": {"exact": method.verb}})
    return found | ({"headers": conditions} if conditions else {})


def action(service: Name, rule: Rule) -> dict[str, Any]:
    """Where a rule's calls go: one cluster, or several by weight."""
    if len(rule.split) == 1:
        return {"cluster": cluster_name(service, rule.split[0][0])}
    shares = [{"name": cluster_name(service, version), "weight": weight} for version, weight in rule.split]
    return {"weighted_clusters": {"clusters": shares}}


def _header(header: Header) -> dict[str, Any]:
    if header.kind in ("exact", "prefix"):
        return {"name": header.name, "string_match": {header.kind: header.value}}
    return {"name": header.name, "present_match": True} | ({"invert_match": True} if header.kind == "absent" else {})
