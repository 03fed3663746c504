"""What servers say of calls at once: shown under their own name, and bounded."""

import pytest

from meshwarden.agents.report import concurrency
from meshwarden.agents.report.concurrency import Concurrencies, InvalidState
from meshwarden.v1.workload_service_pb2 import ConcurrencyState, ShedCalls

OWN = ["platform/orders"]


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.said = Concurrencies(lambda: self.now_s)

    def take(
        self, *shed: ShedCalls, workload: str = "w", process: int = 1, limit: int = 5, policy: str = OWN[0]
    ) -> None:
        state = ConcurrencyState(policy=policy, limit=limit, in_flight=2, shed=shed)
        self.said.take(workload, process, [state], OWN)

    def shown(self) -> dict[tuple[str, ...], float]:
        return {
            (one.name.removeprefix("meshwarden_concurrency"), *one.labels.values()): one.value
            for family in self.said.metrics()
            for one in family.samples
        }


@pytest.fixture
def world() -> World:
    return World()


def test_processes_of_a_workload_count_together_until_they_fall_silent(world: World) -> None:
    world.take(ShedCalls(tenant="a", criticality="CRITICAL", count=3), process=1)
    world.take(ShedCalls(tenant="a", criticality="CRITICAL", count=4), process=2)
    assert world.shown() == {
        ("_limit", OWN[0], "w"): 10,
        ("", OWN[0], "w"): 4,
        ("_shed_total", OWN[0], "w", "a", "CRITICAL"): 7,
    }
    world.now_s = 9
    world.take(process=2, limit=1)
    world.now_s = 11
    assert world.shown() == {("_limit", OWN[0], "w"): 1, ("", OWN[0], "w"): 2}
    world.said.take("w", 2, [], OWN)
    assert world.shown() == {}


def test_of_others_policies_nothing_is_taken(world: World) -> None:
    world.take(policy="globex/theirs")
    assert world.shown() == {}


@pytest.mark.parametrize(
    ("shed", "field"),
    [
        ([ShedCalls(tenant="a", criticality="VERY", count=1)], "shed[0].criticality"),
        ([ShedCalls(tenant="a", count=1)], "shed[0].criticality"),
        ([ShedCalls(tenant="a" * 265, criticality="CRITICAL")], "shed[0].tenant"),
        ([ShedCalls(tenant="a", criticality="CRITICAL")] * 501, "shed: 501 of them"),
    ],
)
def test_what_is_out_of_bounds_is_refused_whole(world: World, shed: list[ShedCalls], field: str) -> None:
    with pytest.raises(InvalidState) as refused:
        world.take(*shed)
    assert field in str(refused.value)
    assert world.shown() == {}


def test_series_and_processes_have_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "MAX_SERIES", 3)
    world.take(*(ShedCalls(tenant=f"t{number}", criticality="CRITICAL", count=2**63) for number in range(10)))
    shed = {labels: value for labels, value in world.shown().items() if labels[0] == "_shed_total"}
    assert len(shed) == 4
    assert shed["_shed_total", "", "", "_other", "CRITICAL"] == 7 * 10**12
    for process in range(1000):
        world.take(process=process, limit=2**32 - 1)
    assert len(world.said._said) == concurrency.MAX_PROCESSES
