"""Limits in Envoy's dialect: one token bucket for each calling tenant, in a filter configuration of its own.

Spent buckets are full again whenever their configuration changes, so nothing else may live in it. The tenant is taken
from the caller's certificate; nothing that a caller sends can change it.
"""

import math
from fractions import Fraction
from typing import Any, Final

from meshwarden.controlplane.policy.neutral import Limit, Limits, MethodLimit, Rate
from meshwarden.sdk.quota import rate_limit_field

LOCAL_RATE_LIMIT: Final = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
NAMESPACE: Final = "mesh"
"""The dynamic metadata where the listener puts what the certificate says: `tenant` and `caller`."""
MAX_TENANTS: Final = 16_384
"""Buckets of tenants without a limit of their own. Past it the least used is forgotten, and is full when it returns."""
_SHORTEST_FILL_S: Final = Fraction(1, 20)  # Envoy refuses less
_UNLIMITED: Final = 2**32 - 1
_WAIT_S: Final = 1
_ALWAYS: Final = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
_NEVER: Final = {"default_value": {"numerator": 0, "denominator": "HUNDRED"}}


def rate_limit(limits: Limits | None) -> dict[str, Any]:
    """The filter, in JSON form; without limits it lets everything pass."""
    if limits is None:
        return {"@type": LOCAL_RATE_LIMIT, "stat_prefix": "limit"}
    tenant = {
        "descriptor_key": "tenant",
        "metadata_key": {"key": NAMESPACE, "path": [{"key": "tenant"}]},
        "source": "DYNAMIC",
    }
    return {
        "@type": LOCAL_RATE_LIMIT,
        "stat_prefix": "limit",
        "filter_enabled": _ALWAYS,
        "filter_enforced": _NEVER if limits.shadow else _ALWAYS,
        # For tenants that no limit names.
        "token_bucket": {"max_tokens": _UNLIMITED, "tokens_per_fill": _UNLIMITED, "fill_interval": "1s"},
        "rate_limits": [{"actions": [{"metadata": tenant}]}],
        "descriptors": [_descriptor(limit) for limit in limits.limits],
        "max_dynamic_descriptors": MAX_TENANTS,
        "rate_limited_as_resource_exhausted": True,
        # The same for all of them, whoever is refused.
        "response_headers_to_add": refusal_headers(limits, limits.limits[0] if len(limits.limits) == 1 else None),
    }


def refusal_headers(limits: Limits, limit: Limit | None, part: MethodLimit | None = None) -> list[dict[str, Any]]:
    """What a refused caller is told beside the status.

    Args:
        limits: the policy.
        limit: whose limit it is; None if it may be any tenant's.
        part: the part of it, if it is a method's.
    """
    tenant = "" if limit is None or limit.tenant == "*" else limit.tenant
    level = "tenant" if part is None else "class" if part.of else "method"
    partition = rate_limit_field.partition(tenant, part.method) if tenant and part else tenant
    quota = rate_limit_field.Quota(str(limits.policy), level, partition)
    headers = {
        "retry-after": str(_WAIT_S),
        "x-meshwarden-policy": f"RatePolicy {limits.policy}",
        rate_limit_field.KEY: quota.field(0, _WAIT_S),
    }
    if limit is not None:
        rate = limit.rate if part is None else part.rate
        headers[rate_limit_field.POLICY_KEY] = quota.policy_field(rate.amount, rate.per_s)
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


def bucket(limit: Rate) -> dict[str, Any]:
    """The token bucket: as few tokens at a time as Envoy's shortest interval lets, at exactly the rate asked for."""
    per_token_s = Fraction(limit.per_s).limit_denominator(10**9) / limit.amount
    tokens = max(1, math.ceil(_SHORTEST_FILL_S / per_token_s))
    interval_ns = math.ceil(tokens * per_token_s * 10**9)
    return {
        "max_tokens": limit.burst,
        "tokens_per_fill": tokens,
        "fill_interval": f"{interval_ns // 10**9}.{interval_ns % 10**9:09d}s",
    }


def _descriptor(limit: Limit) -> dict[str, Any]:
    entry = {"key": "tenant"} if limit.tenant == "*" else {"key": "tenant", "value": limit.tenant}
    return {"entries": [entry], "token_bucket": bucket(limit.rate)}
