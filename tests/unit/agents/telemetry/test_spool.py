"""The spool: nothing that was taken is lost or unaccounted for, whatever happens to the process and the disk."""

import errno
import os
import random
import shutil
import stat as file_mode
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshwarden.agents.telemetry import segment
from meshwarden.agents.telemetry.account import Drops
from meshwarden.agents.telemetry.chain import Batch, BatchLimits
from meshwarden.agents.telemetry.segment import Items
from meshwarden.agents.telemetry.spool import Spool, SpoolFull, SpoolLimits
from meshwarden.v1 import report_pb2 as pb

SMALL = SpoolLimits(total_bytes=6000, tenant_bytes=4000, segment_bytes=500)
LIMITS = BatchLimits(size_bytes=600, entries=5)


def spool(directory: Path, limits: SpoolLimits | None = None) -> Spool:
    rng = random.Random(str(directory))
    return Spool(directory, lambda: rng.randbytes(16), limits)


def put(spool: Spool, tenant: str, name: str, spans: int = 1, drops: Drops | None = None) -> None:
    payload = pb.ExportRequest(resource_spans=[name.encode()]).SerializeToString()
    spool.put(tenant, payload, Items(span=spans), drops=drops)


def read(batch: Batch) -> tuple[list[str], Counter[tuple[str, ...]]]:
    """What is in a batch: the names put into it, and its accounts."""
    request = pb.ExportRequest.FromString(batch.ledger + batch.payload)
    drops = Counter({(d.stage, d.signal, d.reason, d.tenant): d.count for d in request.drops})
    return [body.decode() for body in request.resource_spans], drops


def drain(spool: Spool, tenant: str) -> tuple[list[str], Counter[tuple[str, ...]]]:
    names: list[str] = []
    drops: Counter[tuple[str, ...]] = Counter()
    while tenant in spool.chains and (batch := spool.chains[tenant].batch(LIMITS)) is not None:
        some, counted = read(batch)
        names += some
        drops += counted
        spool.chains[tenant].commit(batch.last)
    return names, drops


def segments(directory: Path, tenant: str = "acme") -> list[Path]:
    return sorted((directory / tenant).glob("*.seg"))


class Spooling(RuleBasedStateMachine):
    """Against a model: what was put, what has come up, in which order, and what the accounts say."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = Path(mkdtemp())
        self.directory = self._scratch / "spool"
        self.spool = spool(self.directory, SMALL)
        self.put: dict[str, list[str]] = {"acme": [], "globex": []}
        self.up: dict[str, list[str]] = {"acme": [], "globex": []}
        self.said: Counter[tuple[str, ...]] = Counter()  # dropped before the spool
        self.accounts: Counter[tuple[str, ...]] = Counter()
        self.under_way: dict[str, Batch] = {}
        self.last: dict[str, int] = {"acme": 0, "globex": 0}

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.spool.close()
            shutil.rmtree(self._scratch)

    def settle(self) -> None:
        """What was put has come up, or is accounted for as dropped; in order, and once."""
        for tenant in self.put:
            self.take(tenant, drain(self.spool, tenant))
        for tenant, names in self.put.items():
            dropped = self.accounts["agent.spool", "span", "queue_full", tenant]
            dropped += self.accounts["agent.spool", "span", "refused", tenant]
            assert len(names) == len(self.up[tenant]) + dropped
            ranks = [names.index(name) for name in self.up[tenant]]
            assert ranks == sorted(set(ranks))
        for key, count in self.said.items():
            assert self.accounts[key] == count

    def take(self, tenant: str, content: tuple[list[str], Counter[tuple[str, ...]]]) -> None:
        self.up[tenant] += content[0]
        self.accounts += content[1]

    @rule(tenant=st.sampled_from(["acme", "globex"]), size=st.integers(0, 300), dropped=st.integers(0, 2))
    def take_in(self, tenant: str, size: int, dropped: int) -> None:
        name = f"{len(self.put[tenant])}{'x' * size}"
        drops = Drops({("agent.receive", "span", "malformed", tenant): dropped}) if dropped else None
        put(self.spool, tenant, name, drops=drops)
        self.put[tenant].append(name)
        self.said += drops or Counter()

    @rule(tenant=st.sampled_from(["acme", "globex"]))
    def account(self, tenant: str) -> None:
        drops = Drops({("agent.receive", "log", "too_large", tenant): 3})
        self.spool.drop(drops)
        self.said += drops

    @precondition(lambda self: self.spool.chains)
    @rule(tenant=st.sampled_from(["acme", "globex"]), fate=st.sampled_from(["taken", "crash", "refused", "no answer"]))
    def send(self, tenant: str, fate: str) -> None:
        chain = self.spool.chains.get(tenant)
        batch = chain.batch(LIMITS) if chain is not None else None
        if chain is None or batch is None:
            assert tenant not in self.under_way
            return
        known = self.under_way.setdefault(tenant, batch)
        assert known == batch  # it goes up again as it was, whatever happened in between
        assert batch.first > self.last[tenant]
        if fate == "taken":
            self.take(tenant, read(batch))
            chain.commit(batch.last)
        elif fate == "refused":
            chain.refuse(batch, "refused")
        elif fate == "crash":
            self.restart()
            return
        else:
            return
        self.last[tenant] = batch.last
        del self.under_way[tenant]

    @rule()
    def restart(self) -> None:
        """As kill -9 leaves it: what was written is there, and nothing more is."""
        for chain in self.spool.chains.values():
            chain.close()
        self.spool = spool(self.directory, SMALL)

    @rule(tenant=st.sampled_from(["acme", "globex"]), cut=st.integers(1, 60))
    def die_while_writing(self, tenant: str, cut: int) -> None:
        """A record whose write was cut off was promised to nobody."""
        put(self.spool, tenant, "torn" + "y" * 60)
        files = segments(self.directory, tenant)
        os.truncate(files[-1], files[-1].stat().st_size - cut)
        self.restart()
        batch = self.under_way.get(tenant)
        assert batch is None or self.spool.chains[tenant].batch(LIMITS) == batch

    @invariant()
    def bounded(self) -> None:
        sizes = self.spool.sizes()
        # One segment that is under way and one that is begun may be more.
        assert all(size <= SMALL.tenant_bytes + 2000 for size in sizes.values())
        assert sum(sizes.values()) <= SMALL.total_bytes + 4000


Spooling.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestSpooling = Spooling.TestCase


def test_what_is_on_disk_is_for_us_alone(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool")
    put(one, "acme", "a")
    put(one, "", "b")
    for path in (tmp_path / "spool").rglob("*"):
        assert file_mode.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    one.close()
    again = spool(tmp_path / "spool")
    assert [drain(again, tenant)[0] for tenant in ("acme", "")] == [["a"], ["b"]]
    again.close()


def test_one_tenant_cannot_push_out_another(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool", SMALL)
    put(one, "globex", "mine")
    for number in range(500):
        put(one, "acme", f"{number}" + "x" * 200)
    names, drops = drain(one, "globex")
    assert (names, drops) == (["mine"], Counter())
    names, drops = drain(one, "acme")
    assert names[-1].startswith("499")
    assert drops == Counter({("agent.spool", "span", "queue_full", "acme"): 500 - len(names)})
    assert len(segments(tmp_path / "spool")) <= 1
    one.close()


def test_a_long_outage_leaves_few_files(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool", SMALL)
    for number in range(2000):
        put(one, "acme", f"{number}" + "x" * 200)
    assert len(segments(tmp_path / "spool")) < 12
    one.close()


@pytest.mark.parametrize("place", ["body", "header"])
def test_a_damaged_record_is_skipped_and_counted(tmp_path: Path, place: str) -> None:
    one = spool(tmp_path / "spool")
    for name in "abc":
        put(one, "acme", name * 50, spans=7)
    one.close()
    (path,) = segments(tmp_path / "spool")
    content = bytearray(path.read_bytes())
    at = content.index(b"b" * 50) if place == "body" else content.index(b"b" * 50) - segment.RECORD_BYTES + 10
    content[at] ^= 0xFF
    path.write_bytes(content)
    for _ in range(3):  # it is one and the same batch each time
        again = spool(tmp_path / "spool")
        batch = again.chains["acme"].batch(BatchLimits())
        assert batch is not None
        names, drops = read(batch)
        again.close()
        assert names == ["a" * 50, "c" * 50]
        known = {("agent.spool", "span", "corrupt", "acme"): 7}
        assert drops == (known if place == "body" else {("agent.spool", "record", "corrupt", "acme"): 1})


def test_a_segment_of_another_format_is_set_aside_and_counted(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool")
    put(one, "acme", "a")
    one.close()
    (path,) = segments(tmp_path / "spool")
    path.write_bytes(b"MWspool2" + path.read_bytes()[8:])
    again = spool(tmp_path / "spool")
    put(again, "acme", "b")
    assert drain(again, "acme") == (["b"], Counter({("agent.spool", "record", "corrupt", "acme"): 1}))
    again.close()
    assert path.with_name(path.name + ".aside").exists()


def test_without_its_cursor_it_tells_all_again_under_its_name(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool")
    put(one, "acme", "a")
    before = one.chains["acme"].batch(LIMITS)
    one.close()
    (tmp_path / "spool" / "acme" / "cursor").write_bytes(b"\xff" * 1024)
    again = spool(tmp_path / "spool")
    after = again.chains["acme"].batch(LIMITS)
    assert before == after
    again.close()


def test_numbers_lost_with_the_power_are_not_given_again(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool")
    put(one, "acme", "a")
    put(one, "acme", "lost")
    sent = one.chains["acme"].batch(LIMITS)
    assert sent is not None
    one.close()
    (path,) = segments(tmp_path / "spool")
    os.truncate(path, path.stat().st_size - 10)
    (tmp_path / "spool" / "acme" / "cursor").unlink()
    again = spool(tmp_path / "spool")
    again.chains["acme"].commit(sent.last)  # the control plane says that it has it
    put(again, "acme", "b")
    assert drain(again, "acme")[0] == ["b"]
    again.close()


def test_a_start_of_which_the_power_leaves_nothing_has_given_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, disk = tmp_path / "spool" / "acme", tmp_path / "disk"
    put(one := spool(tmp_path / "spool"), "acme", "a")
    assert drain(one, "acme")[0] == ["a"]
    one.close()
    shutil.copytree(chain, disk)

    def fsync(descriptor: int) -> None:
        """All that the disk has of it once the power has gone."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        shutil.copyfile(path, disk / path.name)

    monkeypatch.setattr(os, "fsync", fsync)
    two = spool(tmp_path / "spool")
    put(two, "acme", "b")
    put(two, "acme", "c")
    sent = two.chains["acme"].batch(LIMITS)
    two.close()
    shutil.rmtree(chain)
    disk.rename(chain)
    three = spool(tmp_path / "spool")
    put(three, "acme", "d")
    batch = three.chains["acme"].batch(LIMITS)
    assert sent is not None
    assert batch is not None
    assert batch.first > sent.last
    three.close()


class FullDisk:
    """Refuses writes that would make files larger while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 30
        self._write = segment.write_all
        monkeypatch.setattr("meshwarden.agents.telemetry.chain.write_all", self.write)

    def write(self, descriptor: int, content: bytes, at: int) -> None:
        growth = max(0, at + len(content) - os.fstat(descriptor).st_size)
        if growth > self.room:
            self._write(descriptor, content[: self.room], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= growth
        self._write(descriptor, content, at)


def test_on_a_full_disk_the_oldest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    one = spool(tmp_path / "spool", SpoolLimits(segment_bytes=500))
    for number in range(20):
        put(one, "acme", f"{number}" + "x" * 100)
    disk.room = 0
    freed = one.sizes()["acme"]

    bury = one.chains["acme"].bury

    def give_back(reason: str) -> bool:
        before = one.sizes()["acme"]
        found = bury(reason)
        disk.room += before - one.sizes()["acme"]
        return found

    monkeypatch.setattr(one.chains["acme"], "bury", give_back)
    for number in range(20, 30):
        put(one, "acme", f"{number}" + "x" * 100)
    assert one.sizes()["acme"] <= freed + 200
    names, drops = drain(one, "acme")
    assert names[-1].startswith("29")
    assert drops == Counter({("agent.spool", "span", "disk_full", "acme"): 30 - len(names)})
    one.close()


def test_where_nothing_can_make_room_it_says_so_and_keeps_the_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    one = spool(tmp_path / "spool")
    put(one, "acme", "a")
    disk.room = 0
    with pytest.raises(SpoolFull):
        put(one, "acme", "b" * 1000)
    one.drop(Drops({("agent.receive", "span", "disk_full", "acme"): 5}))
    disk.room = 1 << 20
    put(one, "acme", "c")
    names, drops = drain(one, "acme")
    assert names[-1] == "c"
    assert drops["agent.receive", "span", "disk_full", "acme"] == 5
    assert "a" in names or drops["agent.spool", "span", "disk_full", "acme"] == 1
    one.close()


def test_what_is_owed_waits_in_memory_until_it_is_settled(tmp_path: Path) -> None:
    one = spool(tmp_path / "spool")
    for _ in range(1000):
        one.owe(Drops({("agent.receive", "span", "overload", tenant): 1 for tenant in ("acme", "")}))
    assert one.sizes() == {}
    one.settle()
    size = one.sizes()
    assert 0 < size["acme"] < 200
    one.settle()
    assert one.sizes() == size
    for tenant in ("acme", ""):
        assert drain(one, tenant)[1] == {("agent.receive", "span", "overload", tenant): 1000}
    one.close()


def test_it_costs_no_telemetry_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    one = spool(tmp_path / "spool", SpoolLimits(segment_bytes=500))
    for number in range(20):
        put(one, "acme", f"{number}" + "x" * 100)
    disk.room = 0
    with pytest.raises(SpoolFull):
        put(one, "acme", "y" * 100)
    before = one.sizes()
    one.owe(Drops({("agent.receive", "span", "overload", "acme"): 3}))
    for _ in range(5):
        one.settle()
    assert one.sizes() == before
    disk.room = 1 << 20
    put(one, "acme", "z")
    assert drain(one, "acme")[1]["agent.receive", "span", "overload", "acme"] == 3
    one.close()


WRITER = """
import random, sys
from pathlib import Path
from meshwarden.agents.telemetry.segment import Items
from meshwarden.agents.telemetry.spool import Spool, SpoolLimits
from meshwarden.v1 import report_pb2 as pb
spool = Spool(Path(sys.argv[1]), lambda: random.randbytes(16), SpoolLimits(segment_bytes=4096))
start, number = int(sys.argv[2]), 0
while True:
    name = f"{start + number} " + "x" * (number % 900)
    spool.put("acme", pb.ExportRequest(resource_spans=[name.encode()]).SerializeToString(), Items(span=1))
    print(start + number, flush=True)
    number += 1
"""


@pytest.fixture
def told(tmp_path: Path) -> list[int]:
    """What a writer was told that it is kept, over five deaths of it."""
    found: list[int] = []
    for life in range(5):
        start = life * 1_000_000
        command = [sys.executable, "-c", WRITER, str(tmp_path / "spool"), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            found += [int(writer.stdout.readline()) for _ in range(100 + 37 * life)]
            writer.kill()
            found += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    return found


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path, told: list[int]) -> None:
    one = spool(tmp_path / "spool")
    names, drops = drain(one, "acme")
    kept = [int(name.split()[0]) for name in names]
    assert drops == Counter()
    assert kept == sorted(set(kept))
    # In each life one more may be there whose answer was not heard.
    assert set(told) <= set(kept)
    assert len(kept) - len(told) <= 5
    one.close()
