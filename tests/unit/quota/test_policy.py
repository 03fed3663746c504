"""A policy as a tree: of a mesh of several regions each divides its own part of it."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.rate import of_spec
from meshwarden.controlplane.quota.policy import bucket_of, name_of, tree_of
from meshwarden.controlplane.quota.tree import REST, Level
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.resources_pb2 import RatePolicySpec

EVERY = {
    "rate": {},
    "at once": {},
    "day": {"period": "DAY"},
}


def tree(region: str, **spec: Any) -> Level:
    for limit in spec.get("limits", []):
        for part in limit.get("services", []):
            part.pop("tenant", None)
    said = json_format.ParseDict({"service": "orders", **spec}, RatePolicySpec())
    return tree_of(of_spec(Name("platform", "limits"), said), region)


def levels(level: Level) -> list[Level]:
    return [level, *(below for part in level.parts.values() for below in levels(part))]


@pytest.mark.parametrize("kind", EVERY)
@given(
    amount=st.integers(50, 1_000_000),
    part=st.floats(0.1, 1.0),
    weights=st.dictionaries(st.sampled_from(["ap", "eu", "us", "us-west"]), st.integers(1, 9), min_size=1),
)
def test_the_regions_parts_are_the_limit_and_no_more(
    kind: str, amount: int, part: float, weights: dict[str, int]
) -> None:
    unit = "concurrent" if kind == "at once" else "requests"
    least = max(1, int(amount * part))
    spec: dict[str, Any] = {
        **EVERY[kind],
        "regions": [{"region": region, "weight": weight} for region, weight in weights.items()],
        "total": {unit: amount},
        "limits": [
            {"tenant": "acme", unit: least, "floor": least // 2, "methods": [{"method": "/x/Y", unit: 1 + least // 3}]}
        ],
    }
    whole = levels(tree("eu", **{**spec, "regions": []}))
    for same, *parts in zip(whole, *(levels(tree(region, **spec)) for region in weights), strict=True):
        assert sum(level.ceiling for level in parts) == pytest.approx(same.ceiling)
        assert sum(level.floor for level in parts) <= same.floor * (1 + 1e-9)
        assert {(level.burst_s, level.weight) for level in parts} == {(same.burst_s, same.weight)}
        if kind != "rate":
            assert all(level.ceiling == int(level.ceiling) and level.floor == int(level.floor) for level in parts)
        for region, level in zip(weights, parts, strict=True):
            exact = same.ceiling * weights[region] / sum(weights.values())
            assert abs(level.ceiling - exact) <= (1 if kind != "rate" else exact * 1e-9)


def test_a_region_has_the_whole_where_no_part_is_said_and_nothing_where_others_alone_have_one() -> None:
    spec = {"limits": [{"tenant": "acme", "requests": 90}]}
    assert tree("eu", **spec) == tree("us", **spec)
    named = {**spec, "regions": [{"region": "us", "weight": 2}, {"region": "ap", "weight": 1}]}
    assert [tree(region, **named).parts["acme"].ceiling for region in ("ap", "eu", "us")] == [30, 0, 60]


def test_a_class_of_methods_is_a_part_with_a_name() -> None:
    writes = {"class": "writes", "methods": ["/x/Put", "/x/Drop"], "requests": 30, "floor": 10, "weight": 4}
    limit = {"tenant": "acme", "requests": 90, "methods": [writes, {"method": "/x/Get", "requests": 60}]}
    made = tree("eu", limits=[limit])
    level = made.parts["acme"].parts["writes"]
    assert (level.ceiling, level.floor, level.weight) == (30, 10, 4)
    assert made.parts["acme"].parts.keys() == {"writes", "/x/Get", REST}
    bucket = bucket_of(pb.Bucket(policy="platform/limits", tenant="acme", method="writes"), made, "platform/orders")
    assert made.find(bucket.path) == level
    assert name_of(bucket).method == "writes"
    wide = tree(
        "eu",
        service="",
        services=["*"],
        limits=[{**limit, "methods": [], "services": [{**limit, "service": "orders"}]}],
    )
    bucket = bucket_of(pb.Bucket(policy="platform/limits", tenant="acme", method="writes"), wide, "platform/orders")
    assert wide.find(bucket.path) == level
    assert (name_of(bucket).service, name_of(bucket).method) == ("platform/orders", "writes")
    rest = bucket_of(pb.Bucket(policy="platform/limits", tenant="acme"), wide, "platform/orders")
    assert (name_of(rest).service, name_of(rest).method) == ("platform/orders", "")
