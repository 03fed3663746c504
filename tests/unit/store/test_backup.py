"""Backups of a control plane that runs, really restored."""

import asyncio
import io
import json
import random
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from meshwarden.certs.authority import disk
from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.port import AuthorityLocked
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.backup import BackupError, back_up, restore
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.secrets import seal
from meshwarden.controlplane.store.port import Compacted, Put, Store
from meshwarden.controlplane.store.sqlite import open_store

NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
PASSPHRASE = "correct horse battery"


async def roots(state_dir: Path, passphrase: str = PASSPHRASE, **more: Any) -> DiskAuthority:
    return await DiskAuthority.open(
        state_dir / "ca", passphrase=SecretStr(passphrase), trust_domain="a.test", clock=utc_now, **more
    )


@pytest.fixture
async def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control plane's directory with three records, two roots and an event."""
    monkeypatch.setattr(disk, "SCRYPT_N", 2**10)
    directory = tmp_path / "server"
    directory.mkdir(mode=0o700)
    async with open_store(directory / "store.sqlite") as store:
        for number in range(3):
            await store.commit([Put(f"/a/{number}", b"x")])
    await (await roots(directory, create=True)).prepare(utc_now())
    async with FileAuditLog.open(directory / "audit.jsonl", utc_now) as audit:
        await audit.record("test.event", number=1)
    return directory


@pytest.fixture
async def store(state_dir: Path) -> AsyncIterator[Store]:
    async with open_store(state_dir / "store.sqlite") as opened:
        yield opened


async def test_what_is_restored_is_what_there_was(state_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    about = back_up(state_dir, file, NOW)
    assert (about.revision, about.roots, about.keys) == (3, 2, 2)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    new = tmp_path / "elsewhere" / "server"
    assert restore(file, new) == about
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in new.iterdir()} == {0o600, 0o700}
    before, after = await roots(state_dir), await roots(new)
    assert await after.roots() == await before.roots()
    assert len(await after.activate((await after.roots())[1].fingerprint)) == 2
    with pytest.raises(AuthorityLocked):
        await roots(new, "another horse battery")
    async with open_store(new / "store.sqlite") as store:
        assert [record.key for record in (await store.range("/a/")).records] == ["/a/0", "/a/1", "/a/2"]
        await store.commit([Put("/a/3", b"y")])
    async with FileAuditLog.open(new / "audit.jsonl", utc_now) as audit:
        await audit.record("test.event", number=2)
    assert len((new / "audit.jsonl").read_text().splitlines()) == 2


async def test_no_key_and_no_passphrase_lies_open_in_it(state_dir: Path, tmp_path: Path) -> None:
    back_up(state_dir, tmp_path / "backup.tar", NOW)
    content = (tmp_path / "backup.tar").read_bytes()
    assert content.count(b"BEGIN ENCRYPTED PRIVATE KEY") == 2
    assert b"BEGIN PRIVATE KEY" not in content
    assert PASSPHRASE.encode() not in content
    assert json.loads(members(tmp_path / "backup.tar")["backup.json"])["keys"] == 2


async def test_one_that_is_written_meanwhile_is_copied_as_of_one_revision(
    state_dir: Path, store: Store, tmp_path: Path
) -> None:
    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            value = str(number).encode()
            await store.commit([Put("/pair/one", value), Put("/pair/other", value)])
        return number

    writing = asyncio.ensure_future(write())
    for number in range(3):
        await asyncio.sleep(0)
        await asyncio.to_thread(back_up, state_dir, tmp_path / f"{number}.tar", NOW)
    stop.set()
    assert await writing > 0
    for number in range(3):
        restore(tmp_path / f"{number}.tar", tmp_path / f"new-{number}")
        async with open_store(tmp_path / f"new-{number}" / "store.sqlite") as copy:
            pair = (await copy.range("/pair/")).records
            assert len({(record.value, record.revision) for record in pair}) <= 1


async def test_a_cursor_from_before_is_refused(state_dir: Path, store: Store, tmp_path: Path) -> None:
    about = back_up(state_dir, tmp_path / "backup.tar", NOW)
    # What is written after the backup is lost, and its revisions were seen by somebody.
    for _ in range(5):
        seen = await store.commit([Put("/a/lost", b"z")])
    restore(tmp_path / "backup.tar", tmp_path / "new")
    async with open_store(tmp_path / "new" / "store.sqlite") as restored:
        assert restored.incarnation not in (store.incarnation, about.incarnation)
        assert about.incarnation == store.incarnation
        for cursor in (about.revision, seen):
            with pytest.raises(Compacted, match="read everything afresh"):
                async with aclosing(restored.watch("/a/", after=cursor)) as batches:  # type: ignore[type-var]
                    await anext(batches)
            with pytest.raises(Compacted):
                await restored.range("/a/", at=cursor)
        revision = await restored.commit([Put("/a/new", b"1")])
        assert revision > seen
        async with aclosing(restored.watch("/a/", after=revision - 1)) as batches:  # type: ignore[type-var]
            assert [event.key for event in (await anext(batches)).events] == ["/a/new"]
    restore(tmp_path / "backup.tar", tmp_path / "again")
    async with open_store(tmp_path / "again" / "store.sqlite") as again:
        assert again.incarnation != restored.incarnation


async def test_leases_of_before_are_nobodys(state_dir: Path, store: Store, tmp_path: Path) -> None:
    await store.acquire("ca-rotation", "one", 600.0)
    back_up(state_dir, tmp_path / "backup.tar", NOW)
    restore(tmp_path / "backup.tar", tmp_path / "new")
    async with open_store(tmp_path / "new" / "store.sqlite") as restored:
        assert (await restored.acquire("ca-rotation", "other", 1.0)).owner == "other"


async def test_nothing_is_written_over(state_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    file.write_text("mine")
    with pytest.raises(BackupError, match="exists"):
        back_up(state_dir, file, NOW)
    back_up(state_dir, tmp_path / "good.tar", NOW)
    before = {path.name for path in state_dir.iterdir()}
    with pytest.raises(BackupError, match="isn't empty"):
        restore(tmp_path / "good.tar", state_dir)
    assert {path.name for path in state_dir.iterdir()} == before
    with pytest.raises(BackupError, match="no control plane's state directory"):
        back_up(tmp_path, tmp_path / "other.tar", NOW)
    assert not (tmp_path / "other.tar").exists()
    (tmp_path / "empty").mkdir()
    assert restore(tmp_path / "good.tar", tmp_path / "empty").roots == 2


async def test_a_control_plane_under_vault_has_no_roots_in_it(state_dir: Path, tmp_path: Path) -> None:
    shutil.rmtree(state_dir / "ca")
    (state_dir / "audit.jsonl").write_bytes(b'{"seq":1}\n{"seq":2')
    about = back_up(state_dir, tmp_path / "backup.tar", NOW)
    assert (about.roots, about.keys) == (0, 0)
    restore(tmp_path / "backup.tar", tmp_path / "new")
    assert not (tmp_path / "new" / "ca").exists()
    assert (tmp_path / "new" / "audit.jsonl").read_bytes() == b'{"seq":1}\n'


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def write(file: Path, contents: dict[str, bytes], **odd: Any) -> None:
    with tarfile.open(file, "w:") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in odd.get(name, {}).items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["../evil", "/evil", "ca/../../evil", "ca/.lock", "store.sqlite-wal", "server.json"])
async def test_only_what_belongs_there_is_taken_out(state_dir: Path, tmp_path: Path, name: str) -> None:
    back_up(state_dir, tmp_path / "good.tar", NOW)
    contents = members(tmp_path / "good.tar")
    about = json.loads(contents["backup.json"])
    about["sha256"][name] = about["sha256"]["store.sqlite"]
    contents |= {"backup.json": json.dumps(about).encode(), name: contents["store.sqlite"]}
    write(tmp_path / "bad.tar", contents)
    with pytest.raises(BackupError, match="no backup does"):
        restore(tmp_path / "bad.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "evil").exists()


async def test_what_is_damaged_is_not_restored(state_dir: Path, tmp_path: Path) -> None:
    back_up(state_dir, tmp_path / "good.tar", NOW)
    contents = members(tmp_path / "good.tar")
    about = json.loads(contents["backup.json"])
    bad, new = tmp_path / "bad.tar", tmp_path / "new"
    odd: dict[str, bytes] = {"backup.json": b"{}"}
    for changed in (
        contents | {"store.sqlite": contents["store.sqlite"][:-1] + b"?"},
        {name: content for name, content in contents.items() if name != "ca/roots.json"},
        dict(reversed(contents.items())),
        contents | odd,
        contents | {"backup.json": b"[" * 100_000},
        contents | {"backup.json": json.dumps(about | {"format": 2}).encode()},
        contents | {"backup.json": json.dumps(about | {"sha256": [1]}).encode()},
        contents | {"backup.json": json.dumps(about | {"time": 5}).encode()},
        {"backup.json": contents["backup.json"]},
        {},
    ):
        write(bad, changed)
        with pytest.raises(BackupError):
            restore(bad, new)
        assert not new.exists()
    write(bad, contents, **{"store.sqlite": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}})
    with pytest.raises(BackupError):
        restore(bad, new)
    for noise in (b"", b"noise", (tmp_path / "good.tar").read_bytes()[:5000]):
        bad.write_bytes(noise)
        with pytest.raises(BackupError):
            restore(bad, new)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


SEALED_BY = "a passphrase of backups"


def told(passphrase: str = SEALED_BY) -> SecretStr:
    return SecretStr(passphrase)


async def test_one_under_a_passphrase_shows_nothing_and_is_restored_by_it_alone(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "LOG_N", 10)
    file, new = tmp_path / "backup", tmp_path / "new"
    about = back_up(state_dir, file, NOW, told)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    for shown in (
        b"backup.json",
        b"store.sqlite",
        b"SQLite",
        b"roots.json",
        b"ENCRYPTED",
        b"test.event",
        SEALED_BY.encode(),
    ):
        assert shown not in content
    with pytest.raises(BackupError, match="lies under a passphrase; give it with --passphrase"):
        restore(file, new)
    with pytest.raises(BackupError, match="the passphrase doesn't open it"):
        restore(file, new, lambda: told("another passphrase"))
    assert not new.exists()
    assert restore(file, new, told) == about
    assert await (await roots(new)).roots() == await (await roots(state_dir)).roots()
    # Each has a key of its own, so two of one state have nothing in common but their form.
    back_up(state_dir, tmp_path / "other", NOW, told)
    assert (tmp_path / "other").read_bytes()[17:] != content[17:]
    with pytest.raises(BackupError, match="12 characters or more"):
        back_up(state_dir, tmp_path / "short", NOW, lambda: told("hunter2"))
    assert not (tmp_path / "short").exists()
    left = [path.name for path in (*tmp_path.iterdir(), *state_dir.iterdir()) if path.name.startswith(".")]
    assert left == []


async def test_one_under_a_passphrase_that_was_touched_is_refused(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "LOG_N", 10)
    monkeypatch.setattr(seal, "PIECE", 4096)
    back_up(state_dir, tmp_path / "good", NOW, told)
    back_up(state_dir, tmp_path / "other", NOW, told)
    good, other = (tmp_path / "good").read_bytes(), (tmp_path / "other").read_bytes()
    head, piece = 49, 4096 + 16
    pieces = [good[at : at + piece] for at in range(head, len(good), piece)]
    assert len(pieces) > 10
    rng = random.Random(1)
    touched = [good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :] for at in (*range(head), -1)]
    touched += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in rng.sample(range(head, len(good)), 30)]
    touched += [
        good[:size] for size in (0, 1, 16, head - 1, head, head + 1, head + piece, head + 2 * piece, len(good) - 1)
    ]
    touched += [good + b"x", good + pieces[-1], good[:-16], good[:head] + other[head:], other[:head] + good[head:]]
    for order in ([1, 0, *range(2, len(pieces))], [0, *range(2, len(pieces))], [0, 0, *range(1, len(pieces))]):
        touched.append(good[:head] + b"".join(pieces[number] for number in order))
    bad, new = tmp_path / "bad", tmp_path / "new"
    for content in touched:
        bad.write_bytes(content)
        # What asks for more than anybody can afford is refused before it is tried.
        with pytest.raises(BackupError):
            restore(bad, new, told)
        assert not new.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@given(st.lists(st.integers(0, 9000), max_size=5), st.integers(1, 5000))
def test_what_is_sealed_is_read_as_it_was(sizes: list[int], step: int) -> None:
    out, contents = io.BytesIO(), [bytes([number]) * size for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "LOG_N", 1)
        patch.setattr(seal, "PIECE", 1024)
        writer = seal.SealedWriter(out, told())
        for content in contents:
            writer.write(content)
        writer.finish()
        reader = seal.SealedReader(io.BytesIO(out.getvalue()), told())
        read = b"".join(iter(lambda: reader.read(step), b""))
    assert read == b"".join(contents)


async def test_the_commands_ask_for_it_and_take_it_from_where_it_is_said_to_be(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "LOG_N", 10)
    monkeypatch.setenv("MW_BACKUP", SEALED_BY)

    def invoke(*arguments: object, typed: str | None = None) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=typed)

    async def run(*arguments: object, code: int = 0, typed: str | None = None) -> str:
        # In a thread, since the command has a loop of its own.
        done = await asyncio.to_thread(invoke, *arguments, typed=typed)
        assert done.exit_code == code, done.output
        assert SEALED_BY not in done.output
        return str(done.output)

    where, file = ("--state-dir", state_dir), tmp_path / "file"
    assert "give --passphrase file:PATH, or say --plain" in await run("backup", *where, file, code=1)
    assert "one of them" in await run("backup", *where, "--plain", "--passphrase", "env:MW_BACKUP", file, code=1)
    assert "the variable isn't set" in await run("backup", *where, "--passphrase", "env:MW_NONE", file, code=1)
    assert "not a reference" in await run("backup", *where, "--passphrase", SEALED_BY, file, code=1)
    assert not file.exists()
    await run("backup", *where, "--passphrase", "env:MW_BACKUP", file)
    new = ("--state-dir", tmp_path / "new")
    assert "give --passphrase file:PATH" in await run("restore", *new, file, code=1)
    await run("restore", *new, "--passphrase", "env:MW_BACKUP", file)
    await run("backup", *where, "--plain", tmp_path / "plain")
    await run("restore", "--state-dir", tmp_path / "other", tmp_path / "plain")
    # At a terminal it is asked for, and what was typed isn't shown.
    monkeypatch.setattr("meshwarden.controlplane.cli.local.backup.is_terminal", lambda: True)
    await run("backup", *where, tmp_path / "typed", typed=f"{SEALED_BY}\n{SEALED_BY}\n")
    assert restore(tmp_path / "typed", tmp_path / "third", told).roots == 2
