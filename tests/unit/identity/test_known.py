"""Certificates by what is in memory, of a moment ago: nothing is issued, or refused, for what no longer holds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from google.protobuf.duration_pb2 import Duration

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import VerifiedPeer, verify_chain
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.deny import Denies
from meshwarden.controlplane.identity.issued import ISSUED, Issued
from meshwarden.controlplane.identity.known import Known
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.rate import Limits, Pace
from meshwarden.controlplane.identity.record import NODES, NodeRecord
from meshwarden.controlplane.identity.roster import Roster
from meshwarden.controlplane.resources.model import decode
from meshwarden.controlplane.store.port import Conflict, Delete, Lease, Op, Put, Store
from meshwarden.v1 import node_service_pb2 as v1

ENTRIES = "/resource/WorkloadEntry/"


class Counted:
    """A store that counts how often it is asked what, and in which something happens before a commit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()
        self.before_commit: Any = None

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._store, name)

    async def commit(self, ops: Sequence[Op], *, fence: Lease | None = None) -> int:
        self.asked["commit"] += 1
        if self.before_commit is not None:
            await self.before_commit()
        return await self._store.commit(ops, fence=fence)


class Memory:
    """What was in the store when it was last looked at."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeRecord] = {}
        self.entries: dict[str, Any] = {}

    async def look(self, store: Store) -> None:
        records = (await store.range(NODES)).records
        self.nodes = {r.key: replace(NodeRecord.decode(r.key, r.value), revision=r.revision) for r in records}
        records = (await store.range(ENTRIES)).records
        self.entries = {r.key: decode(r.value, r.revision).workload_entry for r in records}

    def known(self) -> Known:
        return Known(
            lambda node: self.nodes.get(NODES + node),
            lambda tenant, name: self.entries.get(f"{ENTRIES}{tenant}/{name}"),
        )


class Scene:
    """A node that has joined, with its entries, all of it in memory."""

    def __init__(self, world: Any, limits: Limits | None = None) -> None:
        self.world, self.store, self.memory = world, Counted(world.store), Memory()
        self.identity = NodeIdentity(
            world.authority,
            self.store,  # type: ignore[arg-type]
            {},
            world.audit,
            world.clock,
            trust_domain="a.test",
            region="eu",
            known=self.memory.known(),
            limits=limits,
        )
        denies = Denies(world.store, world.audit, world.clock)
        self.roster = Roster(world.store, denies, Issued(world.store, world.clock), world.audit, world.clock)

    async def join(self) -> VerifiedPeer:
        request = v1.AttestRequest(join_token=await self.world.tokens.create("n1"), csr=make_csr(new_key()))
        answer = await self.world.nodes.attest(request, "192.0.2.1:4711", "1")
        return await self.peer(answer.chain)

    async def peer(self, chain: Sequence[bytes]) -> VerifiedPeer:
        return verify_chain(chain, {"a.test": await self.world.authority.bundle()}, self.world.now)

    async def sign(self, peer: VerifiedPeer, *entries: str) -> list[v1.SignedWorkload]:
        requests = [v1.WorkloadCsr(tenant="acme", entry=name, csr=make_csr(new_key())) for name in entries]
        return list((await self.identity.sign_workloads(peer, requests)).results)


@pytest.fixture
async def scene(world: Any) -> Scene:
    await world.entry("web", "n1")
    await world.entry("db", "n1")
    return Scene(world)


async def test_what_is_known_is_not_read_again(scene: Scene) -> None:
    peer = await scene.join()
    await scene.memory.look(scene.world.store)
    assert [one.code for one in await scene.sign(peer, "web", "db", "web")] == [0, 0, 0]
    assert scene.store.asked == {"range": 1, "commit": 1}  # the range is for batches that have ended
    await scene.sign(peer, "web")
    await scene.identity.renew(peer, make_csr(new_key()))
    assert scene.store.asked == {"range": 1, "commit": 3}


async def test_batches_that_have_ended_go_though_not_looked_for_each_time(scene: Scene) -> None:
    peer = await scene.join()
    await scene.memory.look(scene.world.store)
    for _ in range(10):
        await scene.sign(peer, "web")
    assert scene.store.asked["range"] == 1
    scene.world.pass_time(3601)
    for left in (3, 2, 3):
        await scene.sign(peer, "web")
        assert len((await scene.world.store.range(ISSUED)).records) == left
    assert scene.store.asked["range"] == 3


async def test_an_entry_that_has_changed_counts_as_it_is_now(scene: Scene) -> None:
    peer = await scene.join()
    await scene.memory.look(scene.world.store)
    await scene.world.entry("web", "n1", svid_ttl=Duration(seconds=600))
    (web, db) = await scene.sign(peer, "web", "db")
    leaf = x509.load_der_x509_certificate(web.chain[0])
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 600
    assert db.chain
    assert len(await scene.world.events("workload.sign")) == 2  # of the first attempt nobody hears


@pytest.mark.parametrize("change", ["gone", "another node's"])
async def test_an_entry_that_is_the_nodes_no_more(scene: Scene, change: str) -> None:
    peer = await scene.join()
    await scene.memory.look(scene.world.store)
    if change == "gone":
        await scene.world.store.commit([Delete(ENTRIES + "acme/web")])
    else:
        await scene.world.entry("web", "n2")
    web, db = await scene.sign(peer, "web", "db")
    assert (web.code, bool(web.chain)) == (7, False)
    assert db.chain
    assert len(await Issued(scene.world.store, scene.world.clock).live("n1")) == 1


async def test_an_entry_that_goes_while_it_is_signed_for(scene: Scene) -> None:
    """Read just now it is guarded, too."""
    peer = await scene.join()

    async def remove() -> None:
        scene.store.before_commit = None
        await scene.world.store.commit([Delete(ENTRIES + "acme/web")])

    scene.store.before_commit = remove
    (web,) = await scene.sign(peer, "web")
    assert (web.code, bool(web.chain)) == (7, False)


async def test_nothing_is_refused_for_what_memory_lags_behind(scene: Scene) -> None:
    await scene.world.entry("later", "n2")
    await scene.join()
    await scene.memory.look(scene.world.store)
    await scene.roster.evict("n1", "", "ann")
    peer = await scene.join()  # with a certificate that memory doesn't know
    await scene.world.entry("later", "n1")
    await scene.world.entry("new", "n1")
    assert all(one.chain for one in await scene.sign(peer, "web", "later", "new"))
    assert (await scene.identity.renew(peer, make_csr(new_key()))).chain


@pytest.mark.parametrize("end", ["ban", "evict"])
async def test_a_node_that_memory_still_has_gets_nothing(scene: Scene, end: str) -> None:
    peer = await scene.join()
    await scene.memory.look(scene.world.store)
    await (scene.roster.ban("n1", "", "ann") if end == "ban" else scene.roster.evict("n1", "", "ann"))
    for ask in (scene.sign(peer, "web"), scene.identity.renew(peer, make_csr(new_key()))):
        with pytest.raises(Denied):
            await ask
    assert await Issued(scene.world.store, scene.world.clock).live("n1") == []
    assert await scene.world.events("workload.sign") == []
    assert await scene.world.events("node.renew") == []


async def test_each_renewal_counts_though_memory_knows_of_none(scene: Scene) -> None:
    peer = await scene.join()
    await scene.memory.look(scene.world.store)
    chains = [(await scene.identity.renew(peer, make_csr(new_key()))).chain for _ in range(3)]
    for chain in chains:
        assert (await scene.sign(await scene.peer(chain), "web"))[0].chain


async def test_a_second_attempt_is_not_paid_for_twice_and_lets_nobody_in(world: Any) -> None:
    await world.entry("web", "n1")
    scene = Scene(world, Limits(signs_of_node=Pace(0.001, 2)))
    peer = await scene.join()
    await scene.memory.look(world.store)
    await world.entry("web", "n1", svid_ttl=Duration(seconds=600))
    assert [one.code for one in await scene.sign(peer, "web", "web", "web")] == [0, 0, 8]


async def test_a_record_that_never_rests_is_given_up(scene: Scene) -> None:
    peer = await scene.join()

    async def change() -> None:
        await scene.world.entry("web", "n1")

    scene.store.before_commit = change
    with pytest.raises(Conflict):
        await scene.sign(peer, "web")
    assert await scene.world.events("workload.sign") == []


async def test_more_entries_than_one_commit_guards(world: Any) -> None:
    names = [f"w{number}" for number in range(230)]
    for name in names:
        await world.entry(name, "n1")
    scene = Scene(world)
    peer = await scene.join()
    await scene.memory.look(world.store)
    answers = await scene.sign(peer, *names)
    for name, answer in zip(names, answers, strict=True):
        assert (await scene.peer(answer.chain)).spiffe_id.service == name
    assert scene.store.asked["commit"] == 3
    assert len(await Issued(world.store, world.clock).live("n1")) == 230


async def test_a_store_key_of_another_name_signs_for_nobody(scene: Scene) -> None:
    peer = await scene.join()
    stored, _ = await scene.world.store.get(ENTRIES + "acme/web")
    await scene.world.store.commit([Put(ENTRIES + "acme/db", stored.value)])
    await scene.memory.look(scene.world.store)
    assert [one.code for one in await scene.sign(peer, "db")] == [7]
