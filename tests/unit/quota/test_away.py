"""Two nodes under one limit, one of whose agents or servers starts again.

Far below the limit no call is refused for that, and whatever happens the two have no more than there is.
"""

import random
from collections.abc import Callable
from typing import ClassVar

import pytest
from tests.unit.quota.mesh_world import RATE, STEP_S, Mesh, Server

from meshwarden.controlplane.quota.tree import Level
from meshwarden.sdk.quota.lease import Leases
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

LARGE = 10_000


class LargeServer(Server):
    kinds: ClassVar = {
        "requests": (Leases, RatePolicySpec(limits=[RateLimit(tenant="*", requests=LARGE, burst=LARGE)]))
    }


class Node(Mesh):
    """One of two nodes; `other` is told what its points may use as well."""

    other: "Node"

    def divide(self) -> None:
        number, shares = self.allocator.tick(self.now_s)
        self.hand_down(number, shares)
        self.other.hand_down(number, shares)

    def keep_away(self, away_s: float) -> None:
        """The agent ends, and starts again after some seconds."""
        self.restart_agent(0)
        self.down_until_s = self.now_s + away_s

    @property
    def rate(self) -> float:
        """What its servers may use a second."""
        return sum(server.rate for server in self.servers if self.now_s < server.leases._ends_s)


class LargeNode(Node):
    whole, server = Level(parts={"acme": Level(ceiling=LARGE)}), LargeServer


def run(kind: type[Node], loads: tuple[float, float], happens: Callable[[Node], None], seed: int) -> tuple[Node, Node]:
    """Ten seconds, then what happens at the first node, then twenty more."""
    nodes = first, second = [kind([load], random.Random(seed + number)) for number, load in enumerate(loads)]
    first.node, second.node = "n1", "n2"
    first.other, second.other, second.allocator = second, first, first.allocator
    ceiling = first.whole.parts["acme"].ceiling
    for number in range(int(30 / STEP_S)):
        if number == int(10 / STEP_S):
            for node in nodes:
                node.refused = []
            happens(first)
        for node in nodes:
            node.step(number)
        assert first.rate + second.rate <= ceiling * (1 + 1e-9), f"{first.rate} and {second.rate} at {first.now_s:.2f}"
    return first, second


@pytest.mark.parametrize("away_s", [0.0, 1.0, 2.5, 4.0, 6.0, 15.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_call_is_refused_for_an_agent_that_was_away(away_s: float, seed: int) -> None:
    first, second = run(LargeNode, (20.0, 20.0), lambda node: node.keep_away(away_s), seed)
    assert first.refused == second.refused == []


@pytest.mark.parametrize("seed", range(5))
def test_no_call_is_refused_by_a_server_that_takes_anothers_place(seed: int) -> None:
    first, second = run(LargeNode, (20.0, 20.0), lambda node: node.kill_server(0), seed)
    assert first.refused == second.refused == []


@pytest.mark.parametrize("away_s", [4.0, 6.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_others_got_meanwhile_is_not_used_again(away_s: float, seed: int) -> None:
    first, second = run(Node, (80.0, 300.0), lambda node: node.keep_away(away_s), seed)
    assert first.refused
    last = [moment for node in (first, second) for moment in node.passed if moment >= 20]
    assert len(last) > 0.85 * RATE * 10
