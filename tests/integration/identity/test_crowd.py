"""More agents than a verifier remembers by default: each is verified once, and not at each look at open connections."""

from typing import Any

import pytest

from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.app import control_plane

AGENTS = 50_000


async def test_a_leaf_is_remembered_for_each_connection_that_has_a_place(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    capacities = []

    def make(*args: Any, capacity: int = 0, **named: Any) -> PeerVerifier:
        capacities.append(capacity)
        return PeerVerifier(*args, capacity=capacity, **named)

    monkeypatch.setattr(control_plane, "PeerVerifier", make)
    monkeypatch.setattr(control_plane, "connections", lambda _: AGENTS)
    mesh = await start()
    assert await mesh.token("node-a")
    assert min(capacities) >= AGENTS
