"""The tiers: what was written is read back or refused, in whatever tier and whatever happened to the disk."""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwarden.examples.daena.error import Away, Corrupt, Full, Unknown
from meshwarden.examples.daena.memory.hot import Hot
from meshwarden.examples.daena.memory.record import Record, canonical
from meshwarden.examples.daena.memory.store import COLD, HOT, WARM, Limits, Store

AUTHOR = "spiffe://mesh.test/tenant/daena/service/council"
LIMITS = Limits(hot_bytes=4096, hot_s=10, warm_bytes=1 << 20, warm_s=100, max_bytes=1 << 22)


def record(number: int, text: str = "A lease names its holder and an hour at which it ends.") -> Record:
    return Record("daena", AUTHOR, "decision", {"question": "Who holds the lease?", "text": text, "n": str(number)})


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


class Moves(list[tuple[str, str, int]]):
    def __call__(self, source: str, target: str, count: int) -> None:
        self.append((source, target, count))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def moves() -> Moves:
    return Moves()


@pytest.fixture
def store(tmp_path: Path, clock: Clock, moves: Moves) -> Iterator[Store]:
    made = Store(tmp_path, LIMITS, clock, moves)
    yield made
    made.close()


def cool(store: Store, clock: Clock, tier: str) -> None:
    """Lets everything sink to a tier."""
    clock.now_s += LIMITS.hot_s if tier == WARM else LIMITS.warm_s
    store.sweep()


def test_the_hot_tier_lets_the_least_recently_used_go() -> None:
    hot = Hot(30)
    ids = [bytes([number]) for number in range(4)]
    for number, one in enumerate(ids[:3]):
        assert hot.put(one, bytes(10), number) == []
    assert hot.find(ids[0], 5) == bytes(10)
    assert hot.put(ids[3], bytes(10), 6) == [(ids[1], 1)]
    assert hot.expire(5) == [(ids[2], 2), (ids[0], 5)]
    assert (len(hot), hot.size_bytes) == (1, 10)
    assert hot.put(ids[3], bytes(31), 7) == [(ids[3], 7)]
    assert hot.size_bytes == 0


def test_a_record_sinks_when_it_is_idle_and_rises_when_it_is_read(store: Store, clock: Clock, moves: Moves) -> None:
    written = store.write(record(1))
    assert store.read("daena", written.id) == (record(1), HOT)
    cool(store, clock, WARM)
    assert [tier for _, tier in store.newest("daena", "", 9)] == [WARM]
    cool(store, clock, COLD)
    assert [tier for _, tier in store.newest("daena", "", 9)] == [COLD]
    assert [store.read("daena", written.id)[1] for _ in range(3)] == [COLD, WARM, HOT]
    assert moves == [(HOT, WARM, 1), (WARM, COLD, 1), (COLD, WARM, 1), (WARM, HOT, 1)]
    assert store.read("daena", written.id)[0] == record(1)


def test_what_is_read_stays_hot_and_what_is_hot_never_becomes_cold(store: Store, clock: Clock) -> None:
    written = store.write(record(1))
    for _ in range(30):
        clock.now_s += LIMITS.hot_s - 1
        store.sweep()
        assert store.read("daena", written.id)[1] == HOT


def test_each_tier_is_smaller_than_the_one_above_for_the_same_records(store: Store, clock: Clock) -> None:
    for number in range(60):
        store.write(record(number))
    cool(store, clock, WARM)
    warm = store.holdings()[WARM]
    cool(store, clock, COLD)
    cold = store.holdings()[COLD]
    assert warm.records == cold.records == 60
    assert warm.raw_bytes == cold.raw_bytes
    assert cold.stored_bytes < warm.stored_bytes / 2 < warm.raw_bytes / 2
    assert store.holdings()[WARM].stored_bytes == store.holdings()[HOT].stored_bytes == 0


def test_too_much_for_a_tier_sinks_the_oldest_first(tmp_path: Path, clock: Clock) -> None:
    limits = Limits(hot_bytes=1000, hot_s=1e6, warm_bytes=6000, warm_s=1e6, max_bytes=1 << 22)
    store, rng = Store(tmp_path, limits, clock), random.Random(1)
    ids = []
    for number in range(40):
        clock.now_s += 1
        ids.append(store.write(record(number, rng.randbytes(150).hex())).id)
    store.sweep()
    tiers = {row.id: tier for row, tier in store.newest("daena", "", 100)}
    order = [tiers[one] for one in ids]
    assert order == sorted(order, key=[COLD, WARM, HOT].index)
    assert set(order) == {COLD, WARM, HOT}
    assert store.holdings()[WARM].stored_bytes <= limits.warm_bytes
    assert store.holdings()[HOT].stored_bytes <= limits.hot_bytes
    assert [store.read("daena", one)[0].fields["n"] for one in ids] == [str(number) for number in range(40)]
    store.close()


def test_hot_records_in_plenty_keep_none_below_them_from_sinking(tmp_path: Path, clock: Clock) -> None:
    limits = Limits(hot_bytes=1 << 20, hot_s=1e6, warm_bytes=1 << 20, warm_s=100, max_bytes=1 << 22)
    store = Store(tmp_path, limits, clock)
    for number in range(300):
        store.write(record(number))
    last = store.write(record(999)).id
    store._hot.drop(last)
    clock.now_s += 100
    store.sweep()
    assert store.holdings()[COLD].records == 1
    store.close()


def test_the_same_content_is_kept_once(store: Store) -> None:
    first, again = store.write(record(1)), store.write(record(1))
    assert (first.known, again.known, first.id) == (False, True, again.id)
    assert len(store.newest("daena", "", 9)) == 1


def test_a_record_is_its_tenants_alone(store: Store) -> None:
    mine = store.write(record(1)).id
    with pytest.raises(Unknown, match="of tenant acme"):
        store.read("acme", mine)
    assert store.newest("acme", "", 9) == []
    other = store.write(Record("acme", AUTHOR, "decision", record(1).fields)).id
    assert other != mine


def fill(store: Store, ids: list[bytes], count: int) -> None:
    for number in range(count):
        ids.append(store.write(record(number, random.Random(number).randbytes(200).hex())).id)


def test_a_full_memory_refuses_writes_and_reads_on(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path, Limits(max_bytes=2000), clock)
    ids: list[bytes] = []
    with pytest.raises(Full, match="2000 bytes are taken"):
        fill(store, ids, 100)
    assert ids
    assert all(store.read("daena", one) for one in ids)
    store.close()


def test_a_full_disk_loses_nothing_and_the_next_write_with_room_is_taken(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path, LIMITS, clock, max_pages=16)
    ids: list[bytes] = []
    with pytest.raises(Away, match="full"):
        fill(store, ids, 1000)
    assert all(store.read("daena", one) for one in ids)
    cool(store, clock, WARM)
    cool(store, clock, COLD)  # which makes room
    assert not store.write(record(5000)).known
    assert all(store.read("daena", one) for one in ids)
    store.close()


def test_a_cold_tier_that_cannot_be_written_leaves_records_where_they_are(
    store: Store, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = store.write(record(1)).id

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Away, match="No space left"):
            cool(store, clock, COLD)
    assert list((tmp_path / "cold").iterdir()) == []
    assert store.read("daena", one) == (record(1), WARM)


def spoil_frame(directory: Path, wanted: bytes, at: int) -> None:
    database = sqlite3.connect(directory / "warm.sqlite")
    (found,) = database.execute("SELECT frame FROM record WHERE id = ?", (wanted,)).fetchone()
    spoilt = bytearray(found)
    spoilt[at] ^= 0x40
    database.execute("UPDATE record SET frame = ? WHERE id = ?", (bytes(spoilt), wanted))
    database.commit()
    database.close()


def test_a_corrupt_warm_record_is_refused_kept_apart_and_healed_by_a_write(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    bad, good = store.write(record(1)).id, store.write(record(2)).id
    cool(store, clock, WARM)
    spoil_frame(tmp_path, bad, -6)
    with pytest.raises(Corrupt, match=bad.hex()):
        store.read("daena", bad)
    cool(store, clock, COLD)
    assert {row.id: tier for row, tier in store.newest("daena", "", 9)} == {bad: WARM, good: COLD}
    with pytest.raises(Corrupt):
        store.read("daena", bad)
    assert not store.write(record(1)).known
    cool(store, clock, WARM)
    assert store.read("daena", bad) == (record(1), WARM)


@pytest.mark.parametrize("how", ["spoil", "cut", "remove", "swap"])
def test_a_corrupt_segment_is_refused_and_healed_by_a_write(
    store: Store, clock: Clock, tmp_path: Path, how: str
) -> None:
    ids = [store.write(record(number)).id for number in range(3)]
    cool(store, clock, COLD)
    store.write(record(9))
    cool(store, clock, COLD)
    paths = {path.stat().st_size: path for path in (tmp_path / "cold").iterdir()}
    path, other = paths[max(paths)], paths[min(paths)]
    content = path.read_bytes()
    if how == "spoil":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif how == "cut":
        path.write_bytes(content[:-20])
    elif how == "remove":
        path.unlink()
    else:
        path.write_bytes(other.read_bytes())
    refused = 0
    for one in ids:
        try:
            assert store.read("daena", one)[0] in [record(number) for number in range(3)]
        except Corrupt:
            refused += 1
    assert refused
    for number in range(3):
        store.write(record(number))
    cool(store, clock, WARM)
    assert [store.read("daena", one)[0] for one in ids] == [record(number) for number in range(3)]


def test_everything_is_there_after_a_restart_and_what_the_crash_left_is_removed(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path, LIMITS, clock)
    ids = [store.write(record(0)).id]
    cool(store, clock, COLD)
    ids.append(store.write(record(1)).id)
    store.close()
    (tmp_path / "cold" / "0000.nbms").write_bytes(b"orphan")
    (tmp_path / "cold" / "0001.nbms.new").write_bytes(b"unfinished")
    store = Store(tmp_path, LIMITS, clock)
    assert [store.read("daena", one) for one in ids] == [(record(0), COLD), (record(1), WARM)]
    assert len(list((tmp_path / "cold").iterdir())) == 1
    store.sweep()  # nobody is in the segment any more
    assert list((tmp_path / "cold").iterdir()) == []
    store.close()


def test_two_stores_in_one_directory_are_one_too_many(store: Store, tmp_path: Path, clock: Clock) -> None:
    one = store.write(record(1)).id
    with pytest.raises(Away, match="another memory has it"):
        Store(tmp_path, LIMITS, clock)
    assert store.read("daena", one) == (record(1), HOT)


WRITER = """
import sys, itertools
from pathlib import Path
from meshwarden.certs.clock import utc_now
from meshwarden.examples.daena.memory.record import Record
from meshwarden.examples.daena.memory.store import Limits, Store
limits = Limits(hot_bytes=2000, hot_s=0.001, warm_bytes=4000, warm_s=0.002)
store = Store(Path(sys.argv[1]), limits, lambda: utc_now().timestamp())
for number in itertools.count():
    written = store.write(Record("daena", "spiffe://x", "decision", {"n": str(number)}))
    if number % 5 == 0:
        store.sweep()
    print(written.id.hex(), flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path, clock: Clock) -> None:
    for number, count in enumerate((3, 40, 77)):
        directory = tmp_path / str(number)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            ids = [writer.stdout.readline().strip() for _ in range(count)]
            writer.send_signal(signal.SIGKILL)
            ids += writer.stdout.read().split()
        store = Store(directory, LIMITS, clock)
        for one in ids:
            found, _ = store.read("daena", bytes.fromhex(one))
            assert hashlib.sha256(canonical(found)).hexdigest() == one
        store.close()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 12)),
            st.tuples(st.just("read"), st.integers(0, 12)),
            st.tuples(st.just("wait"), st.integers(1, 120)),
            st.tuples(st.just("restart"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_whatever_happens_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    directory, clock = tmp_path_factory.mktemp("nbmf"), Clock()
    limits = Limits(hot_bytes=600, hot_s=10, warm_bytes=600, warm_s=100, max_bytes=1 << 20)
    store = Store(directory, limits, clock)
    written: dict[int, bytes] = {}
    for step, value in steps:
        if step == "write":
            written[value] = store.write(record(value)).id
        elif step == "read" and value in written:
            assert store.read("daena", written[value])[0] == record(value)
        elif step == "wait":
            clock.now_s += value
            store.sweep()
        elif step == "restart":
            store.close()
            store = Store(directory, limits, clock)
        held = store.holdings()
        assert held[WARM].records + held[COLD].records == len(written)
        assert held[HOT].stored_bytes <= limits.hot_bytes
    assert {row.id for row, _ in store.newest("daena", "decision", 100)} == set(written.values())
    store.close()


def test_threads_that_read_write_and_sweep_side_by_side_lose_nothing(store: Store, clock: Clock) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(60):
                number = rng.randrange(20)
                assert store.read("daena", store.write(record(number)).id)[0] == record(number)
                clock.now_s += rng.randrange(60)
                store.sweep()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
