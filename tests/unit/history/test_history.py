"""What the history keeps, finds and forgets, on a real store."""

import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from meshwarden.controlplane.history import read
from meshwarden.controlplane.history.prune import Bounds, prune
from meshwarden.controlplane.history.record import (
    LAST,
    PREFIX,
    Changed,
    Made,
    encode,
    kept,
    key_after,
    summary_of,
    whole,
)
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.resources.model import normalise, ref_of, unwrap
from meshwarden.controlplane.store.port import ABSENT, Put, Record, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.resource_service_pb2 import Change
from meshwarden.v1.resources_pb2 import Resource
from meshwarden.v1.revision_service_pb2 import RevisionChange, RevisionRecord

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
ALL = Bounds(10_000, timedelta(days=90), 1 << 30)
GUARD = "/guard"


def tenant(name: str, shown: str = "") -> Resource:
    spec = f"\nspec: {{displayName: {shown}}}" if shown else ""
    return parse(f"kind: Tenant\nmetadata: {{name: {name}}}{spec}", "m")[0].resource


def service(owner: str, name: str) -> Resource:
    return parse(f"kind: Service\nmetadata: {{tenant: {owner}, name: {name}}}\nspec: {{protocol: GRPC}}", "m")[
        0
    ].resource


def created(*resources: Resource) -> list[Changed]:
    return [Changed(ref_of(one), None, one) for one in resources]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "s" / "store.db") as opened:
        yield opened


async def make(store: Store, changes: list[Changed], time: datetime = NOW, reason: str = "") -> int:
    """Commits a change as the control plane does; returns its revision."""
    guard, _ = await store.get(GUARD)
    at = guard.revision if guard else ABSENT
    made = Made("spiffe://mesh.test/operator/root", time, reason)
    return await store.commit([Put(GUARD, b"", at), Put(key_after(at), encode(changes, made), ABSENT)])


def everything(_: RevisionChange) -> bool:
    return True


async def test_a_change_is_found_by_its_revision_with_what_was_and_what_is(store: Store) -> None:
    first = await make(store, created(tenant("acme"), service("acme", "web")), reason="new")
    await store.commit([Put("/else", b"")])
    old, new = tenant("acme"), tenant("acme", "Acme")
    unwrap(old).metadata.record.revision = first
    second = await make(store, [Changed(ref_of(old), old, new)])
    third = await make(store, [Changed(ref_of(new), new, None)])
    found = await read.find(store, second)
    assert found is not None
    assert (found.revision, found.by, found.time.ToDatetime(UTC)) == (second, "spiffe://mesh.test/operator/root", NOW)
    (change,) = found.changes
    assert (change.action, change.before, change.after) == (Change.UPDATED, normalise(old), normalise(new))
    gone = await read.find(store, third)
    assert gone is not None
    assert (gone.changes[0].action, gone.changes[0].HasField("after")) == (Change.DELETED, False)
    for none in (first - 1, first + 1, third + 1, LAST, LAST + 1):
        if none:
            assert await read.find(store, none) is None


async def test_it_is_listed_the_newest_first_page_by_page_and_in_part(store: Store) -> None:
    made = [await make(store, created(tenant(f"t{number}"), service("acme", "web"))) for number in range(7)]
    found: list[int] = []
    before = 0
    while True:
        page = await read.newest(store, everything, 3, before)
        found += [one.revision for one in page.revisions]
        assert all(not change.HasField("after") for one in page.revisions for change in one.changes)
        before = page.next_before
        if not before:
            break
    assert found == made[::-1]
    one = await read.newest(store, lambda change: change.ref.tenant == "t3", 10)
    assert [(part.revision, len(part.changes)) for part in one.revisions] == [(made[3], 1)]


async def test_a_page_ends_where_enough_was_looked_through(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await make(store, created(tenant(f"t{number}"))) for number in range(5)]
    monkeypatch.setattr(read, "MAX_READ", 2)
    page = await read.newest(store, lambda change: change.ref.tenant == "t0", 10)
    assert (page.revisions, page.next_before) == ((), made[3])
    page = await read.newest(store, lambda change: change.ref.tenant == "t0", 10, page.next_before)
    assert (page.revisions, page.next_before) == ((), made[1])
    page = await read.newest(store, lambda change: change.ref.tenant == "t0", 10, page.next_before)
    assert [one.revision for one in page.revisions] == [made[0]]


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        (ALL, 6),
        (Bounds(4, ALL.age, ALL.size_bytes), 4),
        (Bounds(ALL.changes, timedelta(days=2, hours=1), ALL.size_bytes), 3),
        (Bounds(ALL.changes, ALL.age, 1), 1),
        (Bounds(ALL.changes, timedelta(0), ALL.size_bytes), 1),
    ],
)
async def test_what_is_beyond_a_bound_is_forgotten(store: Store, bounds: Bounds, left: int) -> None:
    made = [await make(store, created(tenant("a")), NOW - timedelta(days=5 - number)) for number in range(6)]
    assert await prune(store, bounds, NOW) == 6 - left
    page = await read.newest(store, everything, 10)
    assert [one.revision for one in page.revisions] == made[::-1][:left]
    assert await prune(store, bounds, NOW) == 0


@pytest.mark.parametrize("value", [b"", b"\xff", RevisionRecord(states=b"x").SerializeToString()])
async def test_one_that_cannot_be_read_hides_no_other(store: Store, value: bytes) -> None:
    first = await make(store, created(tenant("a")))
    spoilt = await store.commit([Put(GUARD, b""), Put(key_after(first), value)])
    last = await make(store, created(tenant("b")))
    page = await read.newest(store, everything, 10)
    assert [one.revision for one in page.revisions] == [last, first]
    if value:
        with pytest.raises(ValueError, match=PREFIX):
            await read.find(store, spoilt)
    assert await prune(store, Bounds(1, ALL.age, ALL.size_bytes), NOW) == 2


def test_states_that_blow_up_are_none() -> None:
    bomb = RevisionRecord(states=zlib.compress(bytes(64 << 20)))
    with pytest.raises(ValueError, match="states"):
        whole(Record(key_after(1), bomb.SerializeToString(), 2))


def test_a_large_batch_fits_beside_its_history() -> None:
    resources = [service("acme", f"s{number}") for number in range(100)]
    for one in resources:
        for number in range(30):
            unwrap(one).metadata.labels[f"label-{number}"] = f"value {number} of {unwrap(one).metadata.name}"
    changes = [Changed(ref_of(one), one, one) for one in resources]
    size = sum(len(one.SerializeToString()) for one in resources)
    assert len(encode(changes, Made("x", NOW))) < size / 3


def test_a_part_is_a_copy() -> None:
    record = Record(key_after(0), encode(created(tenant("a"), tenant("b")), Made("x", NOW)), 1)
    summary = summary_of(record)
    part = kept(summary, lambda change: change.ref.name == "b")
    assert part is not None
    assert [change.ref.name for change in part.changes] == ["b"]
    assert len(summary.changes) == 2
    assert kept(summary, lambda _: False) is None


def test_no_resource_has_a_secret_that_the_history_would_keep() -> None:
    """Resources name secrets and hold none; a field that did would have to be kept out of the history."""
    seen: set[str] = set()

    def look(descriptor: Descriptor) -> None:
        if descriptor.full_name in seen:
            return
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            assert not field.GetOptions().debug_redact, field.full_name
            if field.message_type is not None:
                look(field.message_type)

    look(Resource.DESCRIPTOR)
    assert "meshwarden.v1.WorkloadEntrySpec" in seen
