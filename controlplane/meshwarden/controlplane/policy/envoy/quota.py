"""Limits that hold across the mesh, in Envoy's dialect: it asks its node agent for shares, as of a quota service.

A call's bucket is named by the policy, its tenant and, where the tenant's limit has parts, its method; the agent
assigns a token bucket to each. The tenant is in a header that Envoy itself overwrites with the certificate's word:
buckets can be named by headers, and not by metadata.

Source: Envoy, "Rate limit quota"; envoy/service/rate_limit_quota/v3/rlqs.proto.
"""

from typing import Any, Final

from meshwarden.controlplane.policy.envoy.limit import NAMESPACE, refusal_headers
from meshwarden.controlplane.policy.neutral import Limit, Limits, MethodLimit, Rate
from meshwarden.xds.quota_names import DOMAIN, METHOD, POLICY, TENANT

RATE_LIMIT_QUOTA: Final = (
    "type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaFilterConfig"
)
TENANT_HEADER: Final = "x-meshwarden-tenant"
_ALLOW: Final = {"blanket_rule": "ALLOW_ALL"}
_DENY: Final = {"blanket_rule": "DENY_ALL"}
_FILL_S: Final = 10
_SETTINGS: Final = "type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings"
_HEADER: Final = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
HEADER_MUTATION: Final = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"


def tenant_filter() -> dict[str, Any]:
    """Writes the calling tenant, by its certificate, over whatever the caller has said."""
    header = {"key": TENANT_HEADER, "value": f"%DYNAMIC_METADATA({NAMESPACE}:tenant)%"}
    append = {"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
    return {"name": "tenant", "typed_config": {"@type": HEADER_MUTATION, "mutations": {"request_mutations": [append]}}}


def rate_limit_quota(limits: Limits | None) -> dict[str, Any]:
    """The filter, in JSON form; without limits across the mesh one that does nothing."""
    if limits is None or not limits.mesh:
        return {"@type": HEADER_MUTATION, "mutations": {}}
    return {
        "@type": RATE_LIMIT_QUOTA,
        "rlqs_server": {"envoy_grpc": {"cluster_name": "agent"}},
        "domain": DOMAIN,
        "bucket_matchers": _buckets(limits),
    }


def _buckets(limits: Limits) -> dict[str, Any]:
    named = {limit.tenant: _of_tenant(limits, limit) for limit in limits.limits}
    others = named.pop("*", None)
    found: dict[str, Any] = {}
    if named:
        found["matcher_tree"] = {"input": _header(TENANT_HEADER), "exact_match_map": {"map": named}}
    if others is not None:
        found["on_no_match"] = others
    return found


def _of_tenant(limits: Limits, limit: Limit) -> dict[str, Any]:
    if not limit.methods:
        return _bucket(limits, limit)
    # A path may have a query, which names no other method.
    parts = [
        {
            "predicate": {
                "or_matcher": {
                    "predicate": [
                        _path(match, method + end)
                        for method in part.methods
                        for match, end in (("exact", ""), ("prefix", "?"))
                    ]
                }
            },
            "on_match": _bucket(limits, limit, part),
        }
        for part in limit.methods
    ]
    return {"matcher": {"matcher_list": {"matchers": parts}, "on_no_match": _bucket(limits, limit)}}


def _bucket(limits: Limits, limit: Limit, part: MethodLimit | None = None) -> dict[str, Any]:
    names = {
        POLICY: {"string_value": str(limits.policy)},
        TENANT: {"custom_value": _header(TENANT_HEADER)},
        METHOD: {"string_value": part.method if part else ""},
    }
    settings = {
        "@type": _SETTINGS,
        "bucket_id_builder": {"bucket_id_builder": names},
        "reporting_interval": "1s",
        # For the milliseconds until the agent has answered; the limit's whole rate bounds it, by the filter before.
        "no_assignment_behavior": {"fallback_rate_limit": _DENY if limits.away == "deny" else _ALLOW},
        "expired_assignment_behavior": _expired(limits),
        "deny_response_settings": {
            "http_status": {"code": "TooManyRequests"},
            "grpc_status": {"code": 8, "message": f"over the limit of RatePolicy {limits.policy}"},
            "response_headers_to_add": refusal_headers(limits, limit, part),
        },
    }
    return {"action": {"name": "bucket", "typed_config": settings}}


def _expired(limits: Limits) -> dict[str, Any]:
    """What holds when the agent itself is silent; shares that are to be kept don't expire."""
    rules: dict[str, dict[str, Any]] = {"keep": _ALLOW, "deny": _DENY, "fallback": _ALLOW}
    rule = {"token_bucket": _whole_seconds(limits.fallback)} if limits.fallback is not None else rules[limits.away]
    return {"expired_assignment_behavior_timeout": "3600s", "fallback_rate_limit": rule}


def _whole_seconds(rate: Rate) -> dict[str, Any]:
    """A token bucket whose interval Envoy's quota filter can read: it drops what is less than a second."""
    fill = int(rate.amount / rate.per_s * _FILL_S)
    return {"max_tokens": rate.burst, "tokens_per_fill": max(1, fill), "fill_interval": f"{_FILL_S}s"}


def _header(name: str) -> dict[str, Any]:
    return {"name": "header", "typed_config": {"@type": _HEADER, "header_name": name}}


def _path(match: str, value: str) -> dict[str, Any]:
    return {"single_predicate": {"input": _header(":path"), "value_match": {match: value}}}
