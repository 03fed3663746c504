"""Limits of the whole mesh on a real Envoy, with the agent's quota service; the test stands for the control plane."""

import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.integration.test_policy_envoy import Rig, access, app, made, rig, status, two_sidecars, until

from meshwarden.agents.quota.envoy import SERVICE, Envoy
from meshwarden.agents.quota.point import Key, Point
from meshwarden.agents.quota.points import Points
from meshwarden.controlplane.policy.compile import server_limits
from meshwarden.controlplane.policy.mesh import Change
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.xds import api

__all__ = ["app", "rig"]
POLICY, WIDE = "platform/billing", "platform/all"
EVERYONE = {"from": [{"tenant": "acme", "service": "*"}, {"tenant": "globex", "service": "*"}]}


class Quotas:
    """The agent's side of one Envoy's stream, and the control plane's hands."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.ahead_s = 0.0
        clock = lambda: time.monotonic() + self.ahead_s  # noqa: E731
        self.points = Points(None, clock, random.Random(1))  # type: ignore[arg-type]  # no stream is run
        self.point: Point | None = None

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        self.point = point = Point("billing", "platform/billing", lambda: {POLICY, WIDE})
        limits = server_limits(self._rig.mesh, Name("platform", "billing"))
        await Envoy(self.points, point, lambda: limits, Allowance(Share(0.1, 1.0))).converse(requests, context.write)

    async def reported(self, key: Key) -> Point:
        """The point, once the Envoy has asked for a bucket."""

        def found() -> Point | None:
            return self.point if self.point is not None and key in self.point._usages else None

        return await until(found, f"a report of {key}")

    async def grant(self, key: Key, rate: float, burst: float) -> None:
        """Shares out, for a minute."""
        point = await self.reported(key)
        number, _ = point.report(1)
        point.prolong(number, Duration(seconds=60))
        point.grant(1, 1, [pb.Share(bucket=key.to_proto(), rate=rate, burst=burst)], 0.0)


@pytest.fixture
async def quotas(rig: Rig) -> Quotas:
    made_quotas = Quotas(rig)
    method: Any = grpc.stream_stream_rpc_method_handler(
        made_quotas.stream,
        api.message_class("envoy.service.rate_limit_quota.v3.RateLimitQuotaUsageReports").FromString,
        lambda message: message.SerializeToString(),
    )
    handler = grpc.method_handlers_generic_handler(SERVICE, {"StreamRateLimitQuotas": method})
    rig.server.add_generic_rpc_handlers((handler,))
    return made_quotas


def policy(*limits: dict[str, Any], **more: Any) -> Any:
    return made("RatePolicy", "platform", "billing", {"service": "billing", "limits": list(limits), **more})


async def codes(client: httpx.AsyncClient, path: str, count: int, **headers: str) -> list[int]:
    return [(await client.get(f"http://billing{path}", headers=headers)).status_code for _ in range(count)]


async def settles(client: httpx.AsyncClient, path: str, code: int) -> None:
    """Calls until the answer is that."""
    await status(client, f"http://billing{path}", code)


async def test_an_envoy_keeps_to_its_share_by_the_certificates_word(rig: Rig, app: str, quotas: Quotas) -> None:
    slow = {"requests": 1_000_000, "per": "1s"}
    limits = policy(
        {
            "tenant": "acme",
            **slow,
            "methods": [
                {"method": "/part", "requests": 1000},
                {"class": "writes", "methods": ["/put", "/delete"], "requests": 500},
            ],
        },
        {"tenant": "*", **slow},
    )
    _, web = await two_sidecars(
        rig, app, access(EVERYONE), limits, made("Service", "globex", "shop", {"protocol": "HTTP"})
    )
    shop = await rig.envoy("globex", "shop")
    async with web.client() as acme, shop.client() as globex:
        await settles(acme, "/first", 200)
        # A tenth of a call a second: what is left after the burst does not come back within this test.
        await quotas.grant(Key(POLICY, "acme", ""), 0.1, 5.0)
        await settles(acme, "/any", 429)
        assert await codes(acme, "/any", 3, **{"x-meshwarden-tenant": "globex"}) == [429] * 3
        refused = await acme.get("http://billing/any")
        assert refused.headers["x-meshwarden-policy"] == f"RatePolicy {POLICY}"
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["ratelimit-policy"] == f'"{POLICY} tenant";q=1000000;w=1;pk=:YWNtZQ==:'
        assert refused.headers["ratelimit"] == f'"{POLICY} tenant";r=0;t=1;pk=:YWNtZQ==:'
        assert "is over its tenant's rate limit on platform/billing GET /any" in refused.text
        # The tenant's other bucket, and the other tenant, are their own.
        assert await codes(acme, "/part?x=1", 1) == [200]
        await quotas.grant(Key(POLICY, "acme", "/part"), 0.1, 1.0)
        await settles(acme, "/part", 429)
        # The methods of a class have one bucket.
        assert await codes(acme, "/put", 1) == [200]
        await quotas.grant(Key(POLICY, "acme", "writes"), 0.1, 1.0)
        await settles(acme, "/delete?x=1", 429)
        refused = await acme.get("http://billing/put")
        assert refused.status_code == 429
        assert refused.headers["ratelimit-policy"] == f'"{POLICY} class";q=500;w=1;pk=:YWNtZS93cml0ZXM=:'
        assert await codes(globex, "/any", 3) == [200] * 3
        await quotas.reported(Key(POLICY, "globex", ""))
        # A share that grows is felt on the open connection.
        point = quotas.point
        assert point is not None
        point.grant(1, 2, [pb.Share(bucket=Key(POLICY, "acme", "").to_proto(), rate=100_000.0, burst=1000.0)], 0.0)
        await settles(acme, "/any", 200)
        assert await codes(acme, "/part", 1) == [429]


async def test_a_call_must_pass_the_policy_of_its_service_and_that_of_several(
    rig: Rig, app: str, quotas: Quotas
) -> None:
    wide = {"services": ["*"], "limits": [{"tenant": "acme", "requests": 1000, "burst": 1000}]}
    several = made("RatePolicy", "platform", "all", wide)
    _, web = await two_sidecars(
        rig, app, access(EVERYONE), policy({"tenant": "acme", "requests": 100, "burst": 100}), several
    )
    async with web.client() as acme:
        await settles(acme, "/first", 200)
        assert (await quotas.reported(Key(WIDE, "acme", ""))) is quotas.point, "one stream speaks for both"
        await quotas.grant(Key(POLICY, "acme", ""), 100.0, 100.0)
        await quotas.grant(Key(WIDE, "acme", ""), 0.1, 2.0)
        await settles(acme, "/any", 429)
        assert (await acme.get("http://billing/any")).headers["x-meshwarden-policy"] == f"RatePolicy {WIDE}"
        point = quotas.point
        assert point is not None
        point.grant(1, 3, [pb.Share(bucket=Key(WIDE, "acme", "").to_proto(), rate=1000.0, burst=1000.0)], 0.0)
        await settles(acme, "/any", 200)
        point.grant(1, 4, [pb.Share(bucket=Key(POLICY, "acme", "").to_proto(), rate=0.1, burst=1.0)], 0.0)
        await settles(acme, "/any", 429)
        assert (await acme.get("http://billing/any")).headers["x-meshwarden-policy"] == f"RatePolicy {POLICY}"
        # A policy that is gone leaves the other as it is.
        rig.apply(Change(several.key, None))
        assert await codes(acme, "/any", 3) == [429] * 3


async def test_without_shares_each_point_has_the_fallback(rig: Rig, app: str, quotas: Quotas) -> None:
    limit = {"tenant": "acme", "requests": 1_000_000}
    fallback = {"requests": 1, "per": "60s", "burst": 4}
    _, web = await two_sidecars(rig, app, access(EVERYONE), policy(limit, whenAway="FALLBACK", fallback=fallback))
    async with web.client() as acme:
        await settles(acme, "/first", 200)
        await quotas.grant(Key(POLICY, "acme", ""), 1_000_000, 1_000_000)
        assert await codes(acme, "/any", 20) == [200] * 20
        quotas.ahead_s = 100.0
        await settles(acme, "/any", 429)
        quotas.ahead_s = 0.0
        await settles(acme, "/any", 200)


@pytest.mark.parametrize(("away", "code"), [("KEEP_LAST", 200), ("DENY", 429)])
async def test_when_nobody_divides_the_policy_says_what_holds(
    rig: Rig, app: str, quotas: Quotas, away: str, code: int
) -> None:
    limit = {"tenant": "acme", "requests": 1_000_000}
    _, web = await two_sidecars(rig, app, access(EVERYONE), policy(limit, whenAway=away))
    async with web.client() as acme:
        # Where nothing shall pass without the control plane's word, a first call doesn't either.
        await settles(acme, "/first", code)
        await quotas.grant(Key(POLICY, "acme", ""), 1_000_000, 1_000_000)
        await settles(acme, "/any", 200)
        quotas.ahead_s = 100.0
        await settles(acme, "/any", code)


async def test_in_shadow_nothing_is_refused_and_usage_is_told(rig: Rig, app: str, quotas: Quotas) -> None:
    _, web = await two_sidecars(
        rig, app, access(EVERYONE), policy({"tenant": "acme", "requests": 1, "burst": 1}, shadow=True)
    )
    async with web.client() as acme:
        await settles(acme, "/first", 200)
        await quotas.grant(Key(POLICY, "acme", ""), 0.1, 1.0)
        assert await codes(acme, "/any", 20) == [200] * 20
