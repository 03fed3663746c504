import asyncio
import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from meshwarden.controlplane.audit import chain
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.audit.port import AuditBroken, AuditError, AuditUnavailable

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def clock() -> datetime:
    return NOW


async def write(path: Path, *events: str) -> None:
    async with FileAuditLog.open(path, clock) as log:
        for event in events:
            await log.record(event, who="ann")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_events_are_chained_across_starts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await write(path, "a", "b")
    await write(path, "c")
    stored = lines(path)
    assert [line["event"] for line in stored] == ["a", "b", "c"]
    assert [line["seq"] for line in stored] == [1, 2, 3]
    assert stored[2]["prev"] == stored[1]["hash"]
    assert stored[0]["fields"] == {"who": "ann"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("size", [1, 10, 60])
async def test_a_torn_last_line_is_healed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "audit.jsonl"
    await write(path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:size])
    await write(path, "c")
    assert [line["event"] for line in lines(path)] == ["a", "b", "audit.heal", "c"]
    assert lines(path)[2]["fields"] == {"torn_bytes": size}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda text: text.replace(b"ann", b"bob", 1), "line 1"),
        (lambda text: b"".join(text.splitlines(True)[1:]), "line 1"),
        (lambda text: b"".join(text.splitlines(True)[::2]), "line 2"),
        (lambda text: text + text.splitlines(True)[-1], "line 4"),
        (lambda text: text + b"\n", "line 4"),
        (lambda text: text.splitlines(True)[0] + b"noise\n", "line 2"),
        (lambda text: text.splitlines(True)[0] + b"[" * 5000 + b"\n", "line 2"),
        (lambda text: text.replace(b'"seq":2', b'"seq":3', 1), "line 2"),
        (lambda text: text.replace(b'"event":"b"', b'"event":"x","event":"b"', 1), "line 2"),
        (lambda text: text.replace(b'"event":"b"', b'"event": "b"', 1), "line 2"),
    ],
)
async def test_a_broken_chain_says_where(tmp_path: Path, change: Any, where: str) -> None:
    path = tmp_path / "audit.jsonl"
    await write(path, "a", "b", "c")
    path.write_bytes(change(path.read_bytes()))
    broken = path.read_bytes()
    with pytest.raises(AuditBroken, match=where):
        await write(path)
    assert path.read_bytes() == broken


async def test_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with FileAuditLog.open(path, clock):
        with pytest.raises(AuditError, match="another process"):
            await write(path)


async def test_many_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with FileAuditLog.open(path, clock) as log:
        await asyncio.gather(*(log.record("e", number=number) for number in range(500)))
        await log.record_all("all", [{"number": number} for number in range(100)])
        await log.record_all("none", [])
    assert chain.verify(path.read_bytes().splitlines(True)).seq == 600


async def test_notes_past_the_rate_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    moments = iter([NOW] * 3000)
    async with FileAuditLog.open(path, lambda: next(moments, NOW.replace(second=1))) as log:
        for _ in range(2000):
            log.note("denied")
        while next(moments, None):
            pass
        log.note("denied")
        await log.record("end")
    stored = [line["fields"] for line in lines(path) if line["event"] == "denied"]
    assert len(stored) == 51
    assert stored[-1] == {"suppressed_before": 1950}


async def test_notes_that_were_only_counted_are_counted_at_the_end_too(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with FileAuditLog.open(path, clock) as log:
        for _ in range(60):
            log.note("denied")
    assert lines(path)[-1]["event"] == "audit.suppressed"
    assert lines(path)[-1]["fields"] == {"number": 10}


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError("no")


async def test_what_cannot_be_written_is_its_callers_fault_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with FileAuditLog.open(path, clock) as log:
        with pytest.raises(ValueError, match="no"):
            await log.record("a", what=Unspeakable())
        await log.record("b", large=-(10**5000), deep={"list": [10**5000]})
    (line,) = lines(path)
    assert line["event"] == "b"
    chain.verify(path.read_bytes().splitlines(True))


async def test_a_full_disk_is_told_and_leaves_the_chain_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with FileAuditLog.open(path, clock) as log:
        await log.record("a")
        real, log._file = log._file, open("/dev/full", "r+b", buffering=0)  # noqa: SIM115, ASYNC230 - put back below
        with pytest.raises(AuditUnavailable):
            await log.record("lost")
        log._file.close()
        log._file = real
        real.seek(0, 2)
        real.write(b"half a li")
        await log.record("b")
    assert [line["event"] for line in lines(path)] == ["a", "b"]
    chain.verify(path.read_bytes().splitlines(True))


async def test_after_the_end_nothing_is_stored(tmp_path: Path) -> None:
    async with FileAuditLog.open(tmp_path / "audit.jsonl", clock) as log:
        pass
    with pytest.raises(AuditUnavailable, match="closed"):
        await log.record("late")


async def test_secrets_are_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with FileAuditLog.open(path, clock) as log:
        await log.record("a", secret=SecretStr("hunter2"), deep={"list": [SecretStr("hunter2")]})
    assert "hunter2" not in path.read_text()


@given(
    st.dictionaries(
        st.text(max_size=9),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_size=4,
    )
)
def test_whatever_is_recorded_verifies(fields: dict[str, Any]) -> None:
    link, first = chain.append(chain.Link(), NOW, "e", chain.bounded(fields))
    link, second = chain.append(link, NOW, "e", chain.bounded({"more": "\ud800\n" + "x" * 10_000}))
    assert chain.verify([first, second]) == link
    assert len(second) < 30_000
