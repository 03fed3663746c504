"""The memory as a service: what it measures, and hostile requests."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.memory.record import MAX_BYTES, Record
from meshwarden.examples.daena.memory.service import Memory, move_counter
from meshwarden.examples.daena.memory.store import COLD, HOT, WARM, Limits, Store
from meshwarden.examples.daena.metric import Meter

AUTHOR = "spiffe://mesh.test/tenant/daena/service/council"
LIMITS = Limits(hot_bytes=4096, hot_s=10, warm_bytes=1 << 20, warm_s=100, max_bytes=1 << 22)


def record(number: int, text: str = "A lease names its holder and an hour at which it ends.") -> Record:
    return Record("daena", AUTHOR, "decision", {"question": "Who holds the lease?", "text": text, "n": str(number)})


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cool(store: Store, clock: Clock, tier: str) -> None:
    """Lets everything sink to a tier."""
    clock.now_s += LIMITS.hot_s if tier == WARM else LIMITS.warm_s
    store.sweep()


def spoil_frame(directory: Path, wanted: bytes, at: int) -> None:
    database = sqlite3.connect(directory / "warm.sqlite")
    (found,) = database.execute("SELECT frame FROM record WHERE id = ?", (wanted,)).fetchone()
    spoilt = bytearray(found)
    spoilt[at] ^= 0x40
    database.execute("UPDATE record SET frame = ? WHERE id = ?", (bytes(spoilt), wanted))
    database.commit()
    database.close()


@pytest.fixture
def memory(dial: Any, callers: Any, tmp_path: Path, clock: Clock) -> Iterator[tuple[Any, Meter, Store]]:
    meter = Meter()
    store = Store(tmp_path, LIMITS, clock, move_counter(meter))
    servicer = Memory(store, meter, callers.identify)
    channel = dial(lambda server: daena_pb2_grpc.add_MemoryServicer_to_server(servicer, server))
    yield daena_pb2_grpc.MemoryStub(channel), meter, store
    store.close()


def points(meter: Meter) -> dict[tuple[str, str], daena_pb2.Point]:
    return {
        (point.name, point.attributes.get("nbmf.tier", point.attributes.get("nbmf.tier.to", ""))): point
        for point in meter.stats().points
    }


def test_what_is_measured_is_what_happened(memory: Any, clock: Clock) -> None:
    stub, meter, store = memory
    ids = [stub.Write(daena_pb2.WriteRequest(kind="decision", fields=record(n).fields)).id for n in range(8)]
    read = stub.Read(daena_pb2.ReadRequest(id=ids[0]))
    assert read.tier == HOT
    assert (read.record.tenant, read.record.author) == ("daena", AUTHOR)
    cool(store, clock, WARM)
    assert stub.Read(daena_pb2.ReadRequest(id=ids[1])).tier == WARM
    cool(store, clock, COLD)
    assert stub.Read(daena_pb2.ReadRequest(id=ids[2])).tier == COLD
    with pytest.raises(grpc.RpcError):
        stub.Read(daena_pb2.ReadRequest(id="0" * 64))
    found = points(meter)
    assert {tier: found["nbmf.hits", tier].value for tier in (HOT, WARM, COLD)} == {HOT: 1, WARM: 1, COLD: 1}
    assert found["nbmf.misses", ""].value == 1
    assert found["nbmf.write.duration", ""].count == 8
    assert {tier: found["nbmf.read.duration", tier].count for tier in (HOT, WARM, COLD)} == {HOT: 1, WARM: 1, COLD: 1}
    assert found["nbmf.promotions", HOT].value == found["nbmf.promotions", WARM].value == 1
    assert found["nbmf.demotions", WARM].value == 9
    assert found["nbmf.demotions", COLD].value == 8
    assert found["nbmf.tier.records", COLD].value == 7
    assert found["nbmf.compression.ratio", COLD].value > found["nbmf.compression.ratio", WARM].value > 1
    held = store.holdings()
    assert {tier: found["nbmf.tier.size", tier].value for tier in held} == {
        tier: holding.stored_bytes for tier, holding in held.items()
    }


def test_a_corrupt_record_is_data_loss_and_counted(
    memory: Any, clock: Clock, tmp_path: Path, refused: Callable[..., str]
) -> None:
    stub, meter, store = memory
    wanted = stub.Write(daena_pb2.WriteRequest(kind="decision", fields={"text": "a"})).id
    cool(store, clock, WARM)
    spoil_frame(tmp_path, bytes.fromhex(wanted), -1)
    assert wanted in refused(grpc.StatusCode.DATA_LOSS, stub.Read, daena_pb2.ReadRequest(id=wanted))
    assert points(meter)["nbmf.corrupt", ""].value == 1


def test_another_tenant_does_not_learn_that_a_record_is_there(
    memory: Any, callers: Any, refused: Callable[..., str]
) -> None:
    stub, _, _ = memory
    wanted = stub.Write(daena_pb2.WriteRequest(kind="decision", fields={"text": "a"})).id
    callers.become("acme", "analyst")
    there = refused(grpc.StatusCode.NOT_FOUND, stub.Read, daena_pb2.ReadRequest(id=wanted))
    nowhere = refused(grpc.StatusCode.NOT_FOUND, stub.Read, daena_pb2.ReadRequest(id="0" * 64))
    assert there.replace(wanted, "") == nowhere.replace("0" * 64, "")
    assert list(stub.List(daena_pb2.ListRequest()).entries) == []


def test_the_newest_are_listed_first_and_no_more_than_asked_for(memory: Any) -> None:
    stub, _, _ = memory
    ids = [stub.Write(daena_pb2.WriteRequest(kind="decision", fields={"n": str(n)})).id for n in range(12)]
    stub.Write(daena_pb2.WriteRequest(kind="draft", fields={"n": "1"}))
    listed = stub.List(daena_pb2.ListRequest(kind="decision", limit=3)).entries
    assert [entry.id for entry in listed] == ids[:-4:-1]
    assert len(stub.List(daena_pb2.ListRequest()).entries) == 10
    assert {entry.kind for entry in stub.List(daena_pb2.ListRequest(limit=100)).entries} == {"decision", "draft"}


@pytest.mark.parametrize(
    ("field", "method", "request_"),
    [
        ("kind", "Write", daena_pb2.WriteRequest(fields={"a": "b"})),
        ("kind", "Write", daena_pb2.WriteRequest(kind="Decision'; --", fields={"a": "b"})),
        ("kind", "Write", daena_pb2.WriteRequest(kind="d" * 70_000, fields={"a": "b"})),
        ("fields", "Write", daena_pb2.WriteRequest(kind="decision")),
        ("fields", "Write", daena_pb2.WriteRequest(kind="decision", fields={str(n): "" for n in range(33)})),
        ("fields", "Write", daena_pb2.WriteRequest(kind="decision", fields={"": "b"})),
        ("fields", "Write", daena_pb2.WriteRequest(kind="decision", fields={"a\n": "b"})),
        ("fields", "Write", daena_pb2.WriteRequest(kind="decision", fields={"a": "b" * MAX_BYTES})),
        ("fields", "Write", daena_pb2.WriteRequest(kind="decision", fields={"a": '"' * (MAX_BYTES // 2)})),
        ("id", "Read", daena_pb2.ReadRequest()),
        ("id", "Read", daena_pb2.ReadRequest(id="A" * 64)),
        ("id", "Read", daena_pb2.ReadRequest(id="../" + "0" * 61)),
        ("id", "Read", daena_pb2.ReadRequest(id="0" * 65)),
        ("id", "Read", daena_pb2.ReadRequest(id="0" * 63 + "\n")),
        ("kind", "List", daena_pb2.ListRequest(kind="%")),
        ("limit", "List", daena_pb2.ListRequest(limit=101)),
        ("limit", "List", daena_pb2.ListRequest(limit=2**32 - 1)),
    ],
)
def test_bad_fields_are_named(memory: Any, refused: Callable[..., str], field: str, method: str, request_: Any) -> None:
    stub, _, store = memory
    said = refused(grpc.StatusCode.INVALID_ARGUMENT, getattr(stub, method), request_)
    assert said.startswith(f"{field}: ")
    assert said.isascii()
    assert len(said) < 300
    assert store.holdings()[WARM].records == 0
