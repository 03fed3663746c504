"""A class of methods has one bucket, whatever is counted."""

from typing import Any

import pytest

from meshwarden.sdk.quota.chunk import Chunks
from meshwarden.sdk.quota.lease import Costs, Leases
from meshwarden.sdk.quota.size import Sizes
from meshwarden.sdk.quota.slot import Slots
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Chunk, Share
from meshwarden.v1.resources_pb2 import MethodLimit, RateLimit, RatePolicySpec

POLICY = "platform/orders"
PUT, DROP, GET = "/shop.v1.Orders/Put", "/shop.v1.Orders/Drop", "/shop.v1.Orders/Get"
ENGINES = {
    "requests": lambda: Leases(),
    "bytes": lambda: Sizes(),
    "cost": lambda: Costs(),
    "concurrent": lambda: Slots(),
    "day": lambda: Chunks(lambda: None, lambda: 7),
}


@pytest.mark.parametrize("kind", ENGINES)
def test_methods_of_a_class_share_one_bucket_and_others_have_theirs(kind: str) -> None:
    unit = "requests" if kind == "day" else kind
    most: dict[str, Any] = {unit: 3, "burst": 3}
    part = MethodLimit(call_class="writes", methods=[PUT, DROP], **most)
    spec = RatePolicySpec(limits=[RateLimit(tenant="acme", methods=[part], **{unit: 100, "burst": 100})])
    if kind == "day":
        spec.period = RatePolicySpec.DAY
    engine: Any = ENGINES[kind]()
    engine.update(PolicyLimits(policy=POLICY, spec=spec), 0.0)
    engine.prolong(1e9, 0.0)
    first = engine.take("acme", PUT, 1, 0.0)
    engine.take("acme", GET, 1, 0.0)
    reported = {usage.bucket.method: usage for usage in engine.report(0.0).usages}
    assert reported.keys() == {"", "writes"}
    for method, amount in (("writes", 3), ("", 100)):
        share = Share(bucket=reported[method].bucket)
        if kind == "day":
            share.chunk.CopyFrom(Chunk(series=7, turn=1, amount=amount))
            share.chunk.until.FromSeconds(3600)
            engine.grant([share], 0.0, 0.0)
        else:
            share.rate = share.burst = amount
            engine.grant([share], 0.0)
    taken = [engine.take("acme", method, 1, 9.0) for method in (PUT, DROP, DROP, PUT)]
    passed = 3 - (kind == "concurrent" and first.allowed)
    assert [decision.allowed for decision in taken] == [True] * passed + [False] * (4 - passed)
    assert taken[-1].level == "method"
    assert engine.take("acme", GET, 1, 9.0).allowed
    if kind == "concurrent":
        engine.end("acme", DROP, 9.0)
        assert engine.take("acme", PUT, 1, 9.0).allowed
    if kind == "cost":
        engine.charge("acme", PUT, 5, 9.0)
        assert engine.charge("acme", DROP, 0, 9.0) > 0, "what one owes the other waits for"


def test_a_class_that_gets_another_method_keeps_what_was_spent() -> None:
    def spec(*methods: str) -> PolicyLimits:
        part = MethodLimit(call_class="writes", methods=methods, requests=3, burst=3)
        limit = RateLimit(tenant="acme", methods=[part], requests=100, burst=100)
        return PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=[limit]))

    leases = Leases()
    leases.update(spec(PUT), 0.0)
    leases.prolong(1e9, 0.0)
    leases.take("acme", PUT, 1, 0.0)
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="acme", method="writes"), rate=3, burst=3)], 0.0)
    assert [leases.take("acme", PUT, 1, 9.0).allowed for _ in range(4)] == [True, True, True, False]
    leases.update(spec(PUT, DROP), 9.0)
    assert not leases.take("acme", DROP, 1, 9.0).allowed
    leases.update(spec(DROP), 9.0)
    assert leases.take("acme", PUT, 1, 9.0).allowed, "it is among the rest by now"
