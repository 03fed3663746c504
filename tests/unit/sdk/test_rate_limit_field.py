"""The RateLimit fields, read back by a parser of structured fields that is none of ours."""

import math
from typing import Any

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.quota.rate_limit_field import Quota

MOST = 10**15 - 1


def read(field: str) -> tuple[str, dict[str, Any]]:
    """The only member of a list: its name and its parameters."""
    ((name, parameters),) = http_sf.parse(field.encode("ascii"), tltype="list")
    assert isinstance(name, str)
    return name, dict(parameters)


def test_as_the_draft_writes_them() -> None:
    quota = Quota("platform/orders", "tenant", "acme")
    assert quota.policy_field(1500, 1.0) == '"platform/orders tenant";q=1500;w=1;pk=:YWNtZQ==:'
    assert quota.field(0.0, 1.2) == '"platform/orders tenant";r=0;t=2;pk=:YWNtZQ==:'
    assert quota.policy_field(65535, 10.0, "content-bytes") == (
        '"platform/orders tenant";q=65535;qu="content-bytes";w=10;pk=:YWNtZQ==:'
    )


def test_whose_part_it_is_may_not_be_known() -> None:
    quota = Quota("platform/orders", "tenant")
    assert read(quota.policy_field(5, 1.0)) == ("platform/orders tenant", {"q": 5, "w": 1})
    assert read(quota.field(7.9, 0.0)) == ("platform/orders tenant", {"r": 7, "t": 0})


@pytest.mark.parametrize(
    ("amount", "per_s", "quota", "window_s"),
    [
        (100, 60.0, 100, 60),
        (5, 0.1, 50, 1),
        (1, 1.5, 2, 3),
        (3, 2.5, 6, 5),
        (1, 0.7, 10, 7),
        (1, 86400.0, 1, 86400),
        # Not exactly in whole seconds: a little less.
        (1000, 1.000000001, 1999, 2),
        (10**15, 0.001, MOST, 1),
    ],
)
def test_a_rate_of_parts_of_seconds(amount: int, per_s: float, quota: int, window_s: int) -> None:
    parameters = read(Quota("p/o", "tenant").policy_field(amount, per_s))[1]
    assert (parameters["q"], parameters["w"]) == (quota, window_s)


@given(
    policy=st.text(max_size=127),
    partition=st.text(st.characters(exclude_categories=["Cs"]), max_size=600),
    amount=st.integers(0, 2**64),
    per_s=st.floats(1e-3, 1e7),
    remaining=st.floats(allow_nan=False),
    reset_s=st.floats(allow_nan=False),
)
def test_whatever_stands_in_them_can_be_read(
    policy: str, partition: str, amount: int, per_s: float, remaining: float, reset_s: float
) -> None:
    quota = Quota(policy, "method", partition)
    plain = "".join(char for char in policy if 0x20 <= ord(char) <= 0x7E)
    name, told = read(quota.policy_field(amount, per_s))
    assert name == f"{plain} method"
    assert told.get("pk", b"").decode() == partition
    assert told["w"] >= 1
    # Never more than the limit is, and but for whole seconds and units as much.
    rate = amount / per_s
    assert told["q"] <= min(rate * told["w"] * (1 + 1e-6) + 1e-6, MOST)
    assert told["q"] >= min(math.floor(rate * told["w"] * (1 - 1e-6)) - 1, MOST)
    name, left = read(quota.field(remaining, reset_s))
    assert name == f"{plain} method"
    assert 0 <= left["r"] <= max(0.0, remaining)
    assert left["t"] >= min(max(0.0, reset_s), MOST)
