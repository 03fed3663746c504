import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.audit import chain, read
from meshwarden.controlplane.audit.port import AuditBroken

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def written(path: Path, number: int, size: int = 10) -> chain.Link:
    """Writes so many events, one a second, of about so many bytes."""
    link, lines = chain.Link(), []
    for count in range(number):
        fields = {"tenant": "acme" if count % 2 else "globex", "pad": "x" * size}
        link, line = chain.append(link, NOW + timedelta(seconds=count), f"e.{count % 3}", fields)
        lines.append(line)
    path.write_bytes(b"".join(lines))
    return link


def all_of(path: Path, limit: int, event: str = "") -> list[int]:
    """The numbers of all events that a reader of pages sees."""
    found, before = [], 0
    while True:
        page = read.newest(path, lambda entry: event in ("", entry["event"]), limit, before)
        found += [entry["seq"] for entry in page.entries]
        before = page.next_before
        if not before:
            return found


@pytest.mark.parametrize("size", [0, 10, 70_000])
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_have_every_event_once_the_newest_first(tmp_path: Path, size: int, limit: int) -> None:
    written(tmp_path / "a", 20, size)
    assert all_of(tmp_path / "a", limit) == list(range(20, 0, -1))
    assert all_of(tmp_path / "a", limit, "e.1") == [20, 17, 14, 11, 8, 5, 2]


@given(sizes=st.lists(st.integers(0, 200), max_size=30), block=st.integers(1, 400), torn=st.binary(max_size=20))
def test_lines_are_found_backwards_wherever_blocks_end(sizes: list[int], block: int, torn: bytes) -> None:
    lines = [b"%d:" % number + b"x" * size for number, size in enumerate(sizes)]
    with tempfile.NamedTemporaryFile() as file, mock.patch.object(read, "BLOCK_BYTES", block):
        file.write(b"".join(line + b"\n" for line in lines) + torn.replace(b"\n", b""))
        file.flush()
        assert list(read._backwards(Path(file.name))) == lines[::-1]


def test_what_is_older_is_not_looked_at(tmp_path: Path) -> None:
    written(tmp_path / "a", 20)
    since = (NOW + timedelta(seconds=15)).isoformat(timespec="milliseconds")
    page = read.newest(tmp_path / "a", lambda _: True, 100, since=since)
    assert [entry["seq"] for entry in page.entries] == [20, 19, 18, 17, 16]
    assert page.next_before == 0


def test_a_page_ends_where_too_much_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a", 20, 1000)
    monkeypatch.setattr(read, "MAX_READ_BYTES", 5000)
    page = read.newest(tmp_path / "a", lambda _: False, 100)
    assert not page.entries
    assert 1 < page.next_before < 20
    assert all_of(tmp_path / "a", 100, "e.0") == [19, 16, 13, 10, 7, 4, 1]


@pytest.mark.parametrize("noise", [b"noise", b"{}", b"[]", b'{"seq": "1"}', b"[" * 5000, b"\xff\xfe", b"null"])
def test_a_line_of_nobody_is_named(tmp_path: Path, noise: bytes) -> None:
    written(tmp_path / "a", 2)
    with (tmp_path / "a").open("ab") as file:
        file.write(noise + b"\n")
    with pytest.raises(AuditBroken, match="not a line"):
        read.newest(tmp_path / "a", lambda _: True, 10)
    with pytest.raises(AuditBroken, match="line 3"):
        read.verify(tmp_path / "a")


def test_a_whole_file_holds_and_a_line_being_written_is_not_there_yet(tmp_path: Path) -> None:
    end = written(tmp_path / "a", 5)
    with (tmp_path / "a").open("ab") as file:
        file.write(b'{"seq":6')
    assert read.verify(tmp_path / "a") == end
    assert read.verify(tmp_path / "a", end) == end
    assert read.find(tmp_path / "a", 5) == end
    assert len(read.newest(tmp_path / "a", lambda _: True, 10).entries) == 5


def test_a_cut_and_another_chain_are_told_by_the_anchor_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    end = written(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    read.verify(path)
    with pytest.raises(AuditBroken, match="ends with event 4, and had 5: the newest were cut off"):
        read.verify(path, end)
    assert read.find(path, 5) is None
    written(path, 9, size=3)
    read.verify(path)
    with pytest.raises(AuditBroken, match="event 5 is not the one"):
        read.verify(path, end)
    assert read.find(path, 5) != end


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert read.verify(tmp_path / "a") == chain.Link()
    assert read.newest(tmp_path / "a", lambda _: True, 1) == read.Page((), 0)
    with pytest.raises(OSError, match="b"):
        read.newest(tmp_path / "b", lambda _: True, 1)


def test_a_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 100_000)
    (tmp_path / "a").write_bytes(b"x" * 300_000 + b"\n")
    with pytest.raises(AuditBroken, match="more than"):
        read.verify(tmp_path / "a")
    with pytest.raises(AuditBroken, match="more than"):
        read.newest(tmp_path / "a", lambda _: True, 1)


def test_entries_are_what_was_written(tmp_path: Path) -> None:
    written(tmp_path / "a", 1)
    entry = read.newest(tmp_path / "a", lambda _: True, 1).entries[0]
    assert entry == json.loads((tmp_path / "a").read_bytes())
