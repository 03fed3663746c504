"""What policies say of who may call and of what becomes of a call, done by gRPC's own clients and servers of Go."""

import time
from typing import Any

import pytest
from tests.golden.test_policy import mesh_of
from tests.integration.policy_rig import made, until
from tests.integration.test_choice import Asked, ports_of
from tests.integration.test_route import likely
from tests.interop.world import GET, PUT, Go, access, endpoint

from meshwarden.controlplane.policy.gap import gaps
from meshwarden.controlplane.policy.mesh import Change
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Kind, Variant

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(600)]
WEB = "spiffe://mesh.test/tenant/acme/service/web"
FROM_WEB, FROM_SHOP = ({"from": [{"tenant": "acme", "service": name}]} for name in ("web", "shop"))


def of(*methods: str, **match: Any) -> dict[str, Any]:
    return {"match": {**({"methods": list(methods)} if methods else {}), **match}}


def to(version: str) -> dict[str, Any]:
    return {"split": [{"version": version, "weight": 1}]}


async def becomes(caller: Asked, code: str, **call: Any) -> dict[str, Any]:
    """Waits until a call ends so, and gives back its answer."""

    async def same() -> dict[str, Any] | None:
        answer = await caller(**call)
        return answer if answer["codes"] == {code: 1} else None

    found: dict[str, Any] = await until(same, f"a call becomes {code}")
    return found


async def test_who_may_call(world: Go) -> None:
    """MTLS both ways with the agent's files, and access policies at a server of Go, for clients of Go and of C-core."""
    (port,) = ports_of(1)
    await world.serve(port)
    world.apply(endpoint(port), made("Service", "acme", "shop", {"protocol": "GRPC"}))
    web, shop, python = await world.client(), await world.client("acme", "shop"), await world.python()
    for caller in (web, python):
        await becomes(caller, "OK")
    assert (await web())["callers"] == {WEB: 1}, "the certificate says who calls"
    assert (await shop())["codes"] == {"PERMISSION_DENIED": 1}

    case = [{"name": "x-case", "prefix": "C-"}]
    world.apply(access(allow=[FROM_WEB, {**FROM_SHOP, "methods": [GET], "headers": case}]))
    await becomes(shop, "OK", metadata={"x-case": "C-1"})
    assert (await shop(metadata={"x-case": "D-1"}))["codes"] == {"PERMISSION_DENIED": 1}
    assert (await shop(metadata={"x-case": "C-1"}, method=PUT))["codes"] == {"PERMISSION_DENIED": 1}
    assert (await web(method=PUT))["codes"] == {"OK": 1}
    world.apply(access(allow=[FROM_WEB], deny=[{**FROM_WEB, "methods": ["/meshwarden.examples.v1.Orders/P*"]}]))
    for caller in (web, shop):
        await becomes(caller, "PERMISSION_DENIED", method=PUT)
    assert (await web())["codes"] == {"OK": 1}, "the same connection, whose other calls go on"
    world.apply(access(allow=[{"from": [{"tenant": "acme", "service": "*"}]}]))
    await becomes(shop, "OK")
    world.deny((WEB, ""))
    await becomes(web, "PERMISSION_DENIED")
    assert (await shop())["codes"] == {"OK": 1}


async def test_a_server_that_is_another_service_is_not_called(world: Go) -> None:
    (port,) = ports_of(1)
    world.apply(made("Service", "platform", "other", {"protocol": "GRPC"}))
    await world.serve(port, kind="tls", service=("platform", "other"))
    world.apply(endpoint(port))
    found = await becomes(await world.client(), "UNAVAILABLE")
    assert "SAN" in found["details"], found


async def test_which_version_a_call_goes_to(world: Go) -> None:
    first, second = ports_of(2)
    one, two = {str(first): 1}, {str(second): 1}
    await world.serve(first, second)
    everyone = {"from": [{"tenant": "acme", "service": "*"}]}
    world.apply(endpoint(first), endpoint(second, "v2"), made("Service", "acme", "shop", {"protocol": "GRPC"}))
    world.apply(access(allow=[everyone]))
    web, shop = await world.client(), await world.client("acme", "shop")
    header = {"name": "x-plan", "exact": "gold"}
    world.rules(
        {**of(**FROM_SHOP), **to("v2")},
        {**of(PUT), **to("v2")},
        {**of(headers=[header]), **to("v2")},
        {**of(headers=[{"name": "x-late", "present": True}]), **to("v2")},
        {
            **of("/meshwarden.examples.v1.Orders/*"),
            "split": [{"version": "v1", "weight": 3}, {"version": "v2", "weight": 1}],
        },
    )
    await until(lambda: shares(shop, {str(second)}), "shop goes to v2")
    await until(lambda: shares(web, {str(first), str(second)}), "web goes to both")
    found = (await web(count=400, concurrency=8))["versions"]
    assert found[str(first)] in likely(0.75, 400)
    assert (await web(method=PUT))["versions"] == two
    assert (await web(metadata={"x-plan": "gold"}))["versions"] == two
    assert (await web(metadata={"x-late": "a"}))["versions"] == two
    assert str(first) in (await web(metadata={"x-late": ""}, count=50))["versions"], "an empty one is none for it"
    world.rules(to("v1"))
    for caller in (web, shop):
        await until(lambda caller=caller: shares(caller, {str(first)}), "all go to v1")
        assert (await caller())["versions"] == one


async def shares(caller: Asked, wanted: set[str]) -> bool:
    answer = await caller(count=40)
    return set(answer["codes"]) == {"OK"} and set(answer["versions"]) == wanted


@pytest.mark.parametrize("kind", ["server", "tls"])
async def test_timeouts_retries_and_faults(world: Go, kind: str) -> None:
    """Of a server over xDS, too, which ends a call by an error alone, as C-core's may not."""
    (port,) = ports_of(1)
    await world.serve(port, kind=kind)
    world.apply(endpoint(port))
    web = await world.client()
    await becomes(web, "OK")
    world.rules(
        {**of(headers=[{"name": "x-do", "exact": "slow"}]), "timeout": "1s"},
        {"retry": {"codes": ["UNAVAILABLE"], "attempts": 3, "backoff": {"base": "0.005s"}}},
        idempotent=[GET],
    )

    async def again() -> bool:
        before = (await web())["calls"][GET]
        assert (await web(metadata={"x-do": "fail"}))["codes"] == {"UNAVAILABLE": 1}
        return (await web())["calls"][GET] == before + 5

    await until(again, "a call is made four times")
    assert (await web(method=PUT, metadata={"x-do": "fail"}))["codes"] == {"UNAVAILABLE": 1}
    assert (await web())["calls"][PUT] == 1, "what isn't idempotent is made once"
    begun_s = time.monotonic()
    assert (await web(timeout_s=60, metadata={"x-do": "slow"}))["codes"] == {"DEADLINE_EXCEEDED": 1}
    assert 1 <= time.monotonic() - begun_s < 30

    half = {"abort": {"grpcStatus": "DATA_LOSS", "percent": 50}}
    end = {"abort": {"httpStatus": 503, "percent": 100}, "headers": [{"name": "x-do", "exact": "all"}]}
    wait = {"delay": {"fixedDelay": "0.5s", "percent": 100}}
    world.rules(
        {**of(headers=[{"name": "x-do", "exact": "half"}]), "fault": half},
        {**of(headers=[{"name": "x-do", "exact": "wait"}]), "fault": wait},
        {"fault": end},
    )
    await becomes(web, "UNAVAILABLE", metadata={"x-do": "all"})
    codes = (await web(count=300, concurrency=4, metadata={"x-do": "half"}))["codes"]
    assert codes.keys() == {"OK", "DATA_LOSS"}
    assert codes["DATA_LOSS"] in likely(0.5, 300)
    begun_s = time.monotonic()
    assert (await web(metadata={"x-do": "wait"}))["codes"] == {"OK": 1}
    assert time.monotonic() - begun_s >= 0.5
    assert (await web())["codes"] == {"OK": 1}


async def test_what_it_cannot_do_it_takes_and_status_says_so(world: Go) -> None:
    (port,) = ports_of(1)
    await world.serve(port)
    world.apply(endpoint(port))
    web = await world.client()
    await becomes(web, "OK")
    world.rules(
        {
            **of(headers=[{"name": "user-agent", "prefix": "grpc-go"}]),
            "fault": {"abort": {"grpcStatus": "DATA_LOSS", "percent": 100}},
        },
        {**of(headers=[{"name": "x-late", "present": True}]), **to("v1")},
        {
            "retry": {
                "codes": ["503", "UNAVAILABLE"],
                "attempts": 1,
                "perTryTimeout": "0.5s",
                "budget": {"percent": 20},
            },
            "mirror": {"percent": 100},
            "requestHeaders": {"set": [{"name": "x-do", "value": "fail"}]},
            "responseHeaders": {"set": [{"name": "set-cookie", "value": "a=1"}]},
            "timeout": "20s",
        },
        idempotent=[GET],
    )

    async def repeats() -> bool:
        before = (await web())["calls"][GET]
        await web(metadata={"x-do": "fail"})
        return (await web())["calls"][GET] == before + 3

    await until(repeats, "the second rule is in force")
    answer = await web(metadata={"x-hold": "1"})
    assert answer["codes"] == {"OK": 1}, "an attempt may take as long as the call; no header is changed, none matched"
    assert answer["cookies"] == []
    said = {gap.field: gap.what for gap in gaps(world.mesh, Name("platform", "orders"), Variant(Kind.GO))}
    rule = "spec.rules[2]."
    assert said == {
        "spec.rules[0].match.headers[0]": "ignored",
        "spec.rules[1].match.headers[0]": "equivalent",
        **dict.fromkeys((f"{rule}retry.{field}" for field in ("codes", "perTryTimeout", "budget")), "ignored"),
        **dict.fromkeys((f"{rule}{field}" for field in ("mirror", "requestHeaders", "responseHeaders")), "ignored"),
    }


@pytest.mark.parametrize("directory", ["route", "policy", "choice"])
async def test_it_takes_all_that_the_golden_meshes_compile_to(world: Go, directory: str) -> None:
    """Nobody is there to be called; a configuration that is refused fails the world in the end."""
    world.mesh.apply(Change(key, message) for key, message in mesh_of(directory).all().items())
    web = await world.client()
    names = [name for name in world.mesh.visible("acme") if world.mesh.resolve("acme", name.name) == name]
    assert names
    for name in names:
        assert (await web(target=f"xds:///{name.name}"))["codes"] == {"UNAVAILABLE": 1}, name
