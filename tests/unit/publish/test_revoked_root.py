"""Connections end when a root is revoked before they have ended by themselves, and not otherwise."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from meshwarden.certs.authority.slot import RootState, SlotState
from meshwarden.controlplane.publish import roots
from meshwarden.controlplane.publish.roots import Revoked

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ACTIVE = RootState("a" * 64, SlotState.ACTIVE, NOW, NOW + timedelta(days=1), NOW)


def root(state: SlotState, minutes: float) -> RootState:
    """One that came into its state so long ago."""
    return RootState("b" * 64, state, NOW, NOW + timedelta(days=1), NOW - timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("before", "is_cut"),
    [
        (root(SlotState.TAINTED, 0), True),
        (root(SlotState.OLD, 11.9), True),
        (root(SlotState.OLD, 12), False),
        (root(SlotState.TAINTED, 1440), False),
        (root(SlotState.PREPARED, 0), False),  # nothing was made with it yet
    ],
)
async def test_what_is_cut(monkeypatch: pytest.MonkeyPatch, before: RootState, is_cut: bool) -> None:
    monkeypatch.setattr(roots, "HEARD_S", 0.0)
    cut: list[str] = []
    revoked = Revoked((ACTIVE, before), cut.append, lambda: NOW)
    await revoked.follow((ACTIVE, before))
    await revoked.follow((ACTIVE,))
    await revoked.follow((ACTIVE,))
    await asyncio.sleep(0.01)
    assert cut == ([before.fingerprint[:16]] if is_cut else [])
