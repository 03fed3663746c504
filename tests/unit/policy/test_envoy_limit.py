"""Token buckets that Envoy takes, at exactly the rate asked for and with the SDK's bursts."""

import dataclasses
from fractions import Fraction

from google.protobuf import json_format
from hypothesis import example, given
from hypothesis import strategies as st

from meshwarden.controlplane.policy import rate
from meshwarden.controlplane.policy.compile import server_limits
from meshwarden.controlplane.policy.envoy.limit import LOCAL_RATE_LIMIT, bucket, rate_limit
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Limits, Name
from meshwarden.sdk.quota.limit import Limiter
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api

ORDERS = Name("platform", "orders")


def limits_of(requests: int, per_s: int) -> tuple[Mesh, Limits]:
    limits = [{"tenant": "acme", "requests": requests, "per": f"{per_s}s"}]
    spec = {"service": "orders", "scope": "POINT", "limits": limits}
    fields = {"kind": "RatePolicy", "metadata": {"tenant": "platform", "name": "r"}, "spec": spec}
    mesh = Mesh("mesh.test")
    message = json_format.ParseDict(fields, resources_pb2.RatePolicy())
    mesh.apply([Change(Key("RatePolicy", "platform", "r"), message)])
    (said,) = rate.limits(mesh, ORDERS)
    return mesh, said


@given(st.integers(1, 1_000_000), st.integers(1, 3600))
def test_a_bucket_fills_at_the_rate_and_no_more_often_than_envoy_takes(requests: int, per_s: int) -> None:
    _, limits = limits_of(requests, per_s)
    made = bucket(limits.limits[0].rate)
    interval_s = Fraction(str(made["fill_interval"]).removesuffix("s"))
    wanted = Fraction(requests, per_s)
    given_rate = Fraction(made["tokens_per_fill"]) / interval_s
    assert interval_s >= Fraction(1, 20)
    assert wanted * Fraction(999_999, 1_000_000) <= given_rate <= wanted, "never more than is allowed"
    assert made["tokens_per_fill"] == 1 or made["tokens_per_fill"] <= wanted / 20 + 1, "smooth"


@given(st.integers(1, 100_000), st.integers(1, 3600), st.floats(0, 1e9))
@example(requests=87_458, per_s=1, now_s=0.0)
@example(requests=100_000, per_s=1, now_s=1e7)
def test_both_data_planes_let_the_same_burst_through(requests: int, per_s: int, now_s: float) -> None:
    mesh, limits = limits_of(requests, per_s)
    limiter = Limiter()
    limiter.update(server_limits(mesh, ORDERS).policies[0], now_s)
    burst = bucket(limits.limits[0].rate)["max_tokens"]
    assert burst == max(1, int(requests / per_s / 10))
    assert all(limiter.take("acme", "/a.B/C", 1, now_s).allowed for _ in range(burst))
    assert not limiter.take("acme", "/a.B/C", 1, now_s).allowed


def test_in_shadow_nothing_is_refused() -> None:
    _, limits = limits_of(20, 1)
    made = rate_limit(dataclasses.replace(limits, shadow=True))
    assert made["filter_enforced"]["default_value"]["numerator"] == 0
    assert made["filter_enabled"]["default_value"]["numerator"] == 100


def test_without_limits_the_filter_has_no_bucket() -> None:
    assert rate_limit(None) == {"@type": LOCAL_RATE_LIMIT, "stat_prefix": "limit"}


def test_the_filter_bounds_the_buckets_of_tenants_that_it_does_not_name() -> None:
    _, limits = limits_of(20, 1)
    made = rate_limit(limits)
    assert made["max_dynamic_descriptors"] > 20, "Envoy's default of 20 refills spent buckets by eviction"
    assert made["rate_limited_as_resource_exhausted"]
    api.build(LOCAL_RATE_LIMIT.rpartition("/")[2], {key: value for key, value in made.items() if key != "@type"})
