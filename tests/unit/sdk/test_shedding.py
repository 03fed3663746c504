"""The least critical is shed first: of a bucket, and of calls at once."""

from collections.abc import Iterator
from typing import Any

import pytest

from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.criticality import FREE_OF_BUCKET, Criticality
from meshwarden.sdk.quota.lease import Leases
from meshwarden.sdk.quota.limit import Limiter
from meshwarden.sdk.quota.limits import Limits
from meshwarden.sdk.quota.slot import Slots
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import MethodLimit, RateLimit, RatePolicySpec

POLICY, GET, REINDEX = "platform/orders", "/o.Orders/Get", "/o.Orders/Reindex"
MOST = 20
LEVELS = list(Criticality)


def limited(unit: str, **fields: Any) -> PolicyLimits:
    point = fields.get("scope") == RatePolicySpec.POINT
    amounts: dict[str, Any] = {unit: MOST, "burst": MOST}
    methods = [] if point else [MethodLimit(method=REINDEX, criticality=MethodLimit.SHEDDABLE, **amounts)]
    limit = RateLimit(tenant="acme", methods=methods, **amounts)
    return PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=[limit], **fields))


def engine(unit: str, scope: "RatePolicySpec.Scope.ValueType", share: float = MOST) -> Any:
    """With a full bucket at 100 s."""
    if unit == "requests" and scope == RatePolicySpec.POINT:
        limiter = Limiter()
        limiter.update(limited(unit, scope=scope), 0.0)
        return limiter
    made = Slots() if unit == "concurrent" else Leases()
    made.update(limited(unit, scope=scope), 0.0)
    made.prolong(1e9, 0.0)
    for method in (GET, REINDEX):
        made.take("acme", method, 1, 0.0)
        made.end("acme", method, 0.0)
        within = method if method == REINDEX else ""
        named = Bucket(policy=POLICY, tenant="acme", method=within, unit="" if unit == "requests" else unit)
        made.grant([Share(bucket=named, rate=share, burst=share)], 0.0)
    return made


def let_in(of: Any, level: Criticality | None, method: str = GET, tries: int = 2 * MOST) -> int:
    free = None if level is None else FREE_OF_BUCKET[level]
    return sum(of.take("acme", method, 1, 100.0, free).allowed for _ in range(tries))


@pytest.fixture(
    params=[
        ("requests", RatePolicySpec.MESH),
        ("requests", RatePolicySpec.POINT),
        ("concurrent", RatePolicySpec.MESH),
        ("concurrent", RatePolicySpec.POINT),
    ],
    ids=str,
)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(("level", "expected"), list(zip(LEVELS, [20, 20, 15, 10], strict=True)))
def test_each_level_is_let_in_while_its_part_is_left(kind: Any, level: Criticality, expected: int) -> None:
    of = engine(*kind)
    assert let_in(of, level) == expected
    assert let_in(of, None) == MOST - expected, "what matters finds what was left for it"


def test_a_method_matters_as_its_policy_says_unless_its_caller_does() -> None:
    for unit in ("requests", "concurrent"):
        of = engine(unit, RatePolicySpec.MESH)
        assert let_in(of, None, REINDEX) == MOST / 2
        assert let_in(of, Criticality.SHEDDABLE_PLUS, REINDEX) == MOST / 4
        assert let_in(of, Criticality.CRITICAL, REINDEX) == MOST / 4
        assert let_in(of, None, GET) == MOST


def test_a_policy_that_changes_changes_what_a_method_matters() -> None:
    of = engine("requests", RatePolicySpec.MESH)
    said = limited("requests")
    said.spec.limits[0].methods[0].criticality = MethodLimit.CRITICAL
    of.update(said, 100.0)
    assert let_in(of, None, REINDEX) == MOST


@pytest.mark.parametrize("unit", ["requests", "concurrent"])
def test_the_least_that_matters_passes_where_nothing_else_wants_to_however_small_the_share(unit: str) -> None:
    of = engine(unit, RatePolicySpec.MESH, share=1.0)
    assert let_in(of, Criticality.SHEDDABLE) == 1


class Silent:
    """An agent that answers nothing."""

    def share(self, requests: Any) -> Iterator[Any]:
        """No answer to what a server has used."""
        next(requests)
        return iter(())


def test_a_server_goes_by_what_the_caller_says() -> None:
    agent: Any = Silent()
    limits = Limits(agent, lambda: 100.0)
    limits.update(ServerLimits(policies=[limited("requests", scope=RatePolicySpec.POINT)]))

    def calls(value: str) -> int:
        criticality.serve([(criticality.KEY, value)])
        return sum(limits.admit("acme", GET).decision.allowed for _ in range(2 * MOST))

    try:
        assert calls("SHEDDABLE") == 10
        assert calls("SHEDDABLE_PLUS") == 5
        assert calls("whatever") == 5, "no level is none"
    finally:
        criticality.serve([])
        limits.close()
