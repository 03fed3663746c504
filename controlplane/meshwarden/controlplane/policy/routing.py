"""Routes in the form that both dialects take: `envoy.config.route.v3.Route` in JSON form.

A rule becomes as many routes as it takes for each to be about one pattern of calls. Calls with the headers that a fault
is for come before the others of a rule; and of each of these the methods that a retry is for before the rest.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, NamedTuple

from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Header, Method, Name
from meshwarden.controlplane.policy.traffic import Rule

FAULT: Final = "fault"
"""The name of the filter that makes faults. By itself it makes none."""
FAULT_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
FAULT_FILTER: Final = {"name": FAULT, "typed_config": {"@type": FAULT_TYPE}}
# Source: gRPC, "Status codes".
_STATUSES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)


class Way(NamedTuple):
    """One route of a rule.

    Attributes:
        rule: what becomes of the calls.
        method: which they are.
        headers: all that they must have.
        is_repeatable: whether the rule's retry is for them.
        is_faulty: whether the rule's fault is.
    """

    rule: Rule
    method: Method
    headers: tuple[Header, ...]
    is_repeatable: bool
    is_faulty: bool


def ways(rules: Iterable[Rule], idempotent: tuple[Method, ...]) -> Iterator[Way]:
    """The routes of rules, in order; the last of all rules fits every call."""
    for rule in rules:
        if rule.fault is not None and rule.fault.headers:
            yield from _ways(rule, idempotent, (*rule.headers, *rule.fault.headers), is_faulty=True)
            yield from _ways(rule, idempotent, rule.headers, is_faulty=False)
        else:
            yield from _ways(rule, idempotent, rule.headers, is_faulty=rule.fault is not None)


def _ways(rule: Rule, idempotent: tuple[Method, ...], headers: tuple[Header, ...], *, is_faulty: bool) -> Iterator[Way]:
    methods = rule.methods or (ANY_METHOD,)
    safe = safe_methods(methods, idempotent) if rule.retry is not None else ()
    yield from (Way(rule, method, headers, True, is_faulty) for method in safe)
    yield from (Way(rule, method, headers, False, is_faulty) for method in methods if method not in safe)


def safe_methods(methods: Iterable[Method], idempotent: tuple[Method, ...]) -> tuple[Method, ...]:
    """The patterns of calls that are both of some methods and idempotent, without repetition."""
    found = (both for method in methods for one in idempotent if (both := method.both(one)) is not None)
    return tuple(dict.fromkeys(found))


def match(method: Method, headers: tuple[Header, ...] = ()) -> dict[str, Any]:
    """An `envoy.config.route.v3.RouteMatch`, in JSON form."""
    found: dict[str, Any] = {"prefix" if method.prefix else "path": method.path}
    conditions = [header_matcher(header) for header in headers]
    if method.verb:
        conditions.append({"name": ":method", "string_match": {"exact": method.verb}})
    return found | ({"headers": conditions} if conditions else {})


def action(service: Name, rule: Rule) -> dict[str, Any]:
    """Where a rule's calls go: one cluster, or several by weight."""
    if len(rule.split) == 1:
        return {"cluster": cluster_name(service, rule.split[0][0])}
    shares = [{"name": cluster_name(service, version), "weight": weight} for version, weight in rule.split]
    return {"weighted_clusters": {"clusters": shares}}


def fault(way: Way) -> dict[str, Any]:
    """What a route overrides of the fault filter that every client has, as its `typed_per_filter_config`."""
    said = way.rule.fault
    if said is None or not way.is_faulty:
        return {}
    config: dict[str, Any] = {"@type": FAULT_TYPE}
    if said.delay is not None:
        config["delay"] = {"fixed_delay": duration(said.delay.span), "percentage": percentage(said.delay.percent)}
    if said.abort is not None:
        how = (
            {"http_status": said.abort.code} if said.abort.code else {"grpc_status": _STATUSES.index(said.abort.status)}
        )
        config["abort"] = {**how, "percentage": percentage(said.abort.percent)}
    return {"typed_per_filter_config": {FAULT: config}}


def percentage(percent: float) -> dict[str, Any]:
    """An `envoy.type.v3.FractionalPercent`: to the millionth, but never none of what is some."""
    return {"numerator": max(1, round(percent * 10_000)), "denominator": "MILLION"}


def duration(span: timedelta) -> str:
    """A `google.protobuf.Duration`, in JSON form."""
    return f"{span.total_seconds():.6f}s"


def header_matcher(header: Header) -> dict[str, Any]:
    """An `envoy.config.route.v3.HeaderMatcher`, in JSON form."""
    if header.kind in ("exact", "prefix"):
        return {"name": header.name, "string_match": {header.kind: header.value}}
    return {"name": header.name, "present_match": True} | ({"invert_match": True} if header.kind == "absent" else {})
