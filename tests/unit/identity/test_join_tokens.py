"""Tokens that ended long ago go, and making one stays as cheap whatever many there are."""

from typing import Any

import pytest

from meshwarden.controlplane.identity.join_token import KEEP, MAX_TTL, SWEEP
from meshwarden.controlplane.identity.record import TOKENS

MANY = 4 * SWEEP


async def test_ended_tokens_go_while_others_are_made(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, looked = world.store.range, []

    async def count(prefix: str, **named: Any) -> Any:
        page = await read(prefix, **named)
        looked.append(len(page.records))
        return page

    monkeypatch.setattr(world.store, "range", count)
    for number in range(MANY):
        await world.tokens.create(f"old-{number}")
    world.pass_time((MAX_TTL + KEEP).total_seconds() + 1)
    new = [await world.tokens.create(f"new-{number}") for number in range(MANY)]
    assert max(looked) <= SWEEP
    kept = await read(TOKENS)
    assert len(kept.records) == MANY
    assert all([await world.tokens.find(token) for token in new])
