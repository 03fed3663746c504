"""How an endpoint is chosen, by gRPC's own client of Go."""

import pytest
from tests.integration.policy_rig import made, until
from tests.integration.test_choice import Asked, answered, at, ports_of, together
from tests.integration.test_route import likely
from tests.interop.world import Go

from meshwarden.controlplane.policy.mesh import Change

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(600)]


async def three(world: Go) -> tuple[Asked, list[int], set[str]]:
    """A client, and a server at three ports that it has reached."""
    ports = ports_of(3)
    await world.serve(*ports)
    world.apply(*map(at, ports))
    caller, names = await world.client(), {str(port) for port in ports}
    await answered(caller, names)
    return caller, ports, names


async def test_load_balancing(world: Go) -> None:
    caller, ports, names = await three(world)
    slow = {"x-hold": "0.5", "x-hold-at": str(ports[0])}

    async def at_the_slow(count: int = 240) -> int:
        answer = await caller(count=count, concurrency=8, metadata=slow)
        assert answer["codes"] == {"OK": count}
        return int(answer["versions"].get(str(ports[0]), 0))

    assert await at_the_slow() in likely(1 / 3, 240), "each in turn"
    world.policy(loadBalancing={"leastRequest": {"choiceCount": 10}})

    async def spared() -> bool:
        return await at_the_slow() < 30

    await until(spared, "who has the fewest under way gets the call")
    world.policy(loadBalancing={"random": {}})
    await answered(caller, names)
    for spec in ({"header": "x-user"}, {"cookie": {"name": "who"}}):
        world.policy(loadBalancing={"ringHash": spec})
        name, form = ("x-user", "u{}") if "header" in spec else ("cookie", "a=b; who={}; c=d")
        await together(caller, metadata={name: form.format(0)})
        seen = [await caller.ports(count=3, metadata={name: form.format(number)}) for number in range(12)]
        assert {len(one) for one in seen} == {1}, f"{spec}: each user at one server"
        assert set.union(*seen) == names, f"{spec}: users at all servers"
    world.policy(loadBalancing={"ringHash": {"sourceIdentity": True}})
    first = await together(caller)
    assert await caller.ports(count=20) == first
    world.policy(affinity={"cookie": {"name": "at"}})
    await together(caller, metadata={"cookie": "at=1"})
    seen = [await caller.ports(metadata={"cookie": f"a=b; at={number}; c=d"}) for number in range(12)]
    assert len(set.union(*seen)) > 1, "another value may be elsewhere"
    assert (await caller(metadata={"cookie": "at=1"}))["cookies"] == [], "it gives out none"


async def test_breakers_and_outliers(world: Go) -> None:
    caller, ports, names = await three(world)
    world.policy(circuitBreaker={"maxRequests": 2})

    async def cut() -> bool:
        codes = (await caller(count=24, concurrency=8, metadata={"x-hold": "0.2"}))["codes"]
        return set(codes) == {"OK", "UNAVAILABLE"}

    await until(cut, "what is too much fails at once")
    assert await caller.ports(count=5), "and one after the other all go"
    bad = str(ports[0])
    bounds = {"interval": "1s", "baseEjectionTime": "3s", "maxEjectionPercent": 34}
    for how in (
        {"consecutive5xx": 3},
        {"failurePercentage": {"threshold": 50, "requestVolume": 5, "minimumHosts": 1}},
    ):
        world.policy(outlierDetection={**how, **bounds})
        await answered(caller, names - {bad}, metadata={"x-fail": bad}, concurrency=3)
        await answered(caller, names)
        world.policy()


async def test_near_endpoints_come_first_and_drains_move_calls(world: Go) -> None:
    near, gone, other, far = ports_of(4)
    await world.serve(gone, other, far)
    program = await world.serve(near)
    world.policy(locality={})
    world.apply(at(near), at(gone), at(other, "b"), at(far, "c", "us"))
    caller = await world.client()
    await answered(caller, {str(near), str(gone)})
    world.apply(at(gone, health="UNHEALTHY"))
    await answered(caller, {str(near), str(other)})
    share = (await caller(count=400, concurrency=4))["versions"][str(near)]
    assert share in likely(50 / 70, 400), f"50 of 70 % stay, {share / 4:.0f} % do"
    drain = made("Drain", "platform", "zone-a", {"zone": "a"})
    world.apply(drain)
    await answered(caller, {str(other)})
    world.apply(made("Drain", "platform", "zone-b", {"zone": "b"}))
    await answered(caller, {str(far)})
    world.apply(Change(drain.key, None))
    world.apply(at(gone), at(near))
    await answered(caller, {str(near), str(gone)})
    world.apply(Change(at(gone).key, None))
    await answered(caller, {str(near)})
    program.kill()
    await program.wait()
    await answered(caller, {str(far)})
