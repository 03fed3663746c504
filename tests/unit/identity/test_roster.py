"""Bans, evictions and what is left of nodes, in the store."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography import x509

from meshwarden.certs.csr import make_csr
from meshwarden.certs.jwt_svid import TTL
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import VerifiedPeer, verify_chain
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.deny import DENIES, Denies, DenyRecord
from meshwarden.controlplane.identity.issued import ISSUED, Certificate, Issued
from meshwarden.controlplane.identity.record import BANS, NODES, RecordError
from meshwarden.controlplane.identity.roster import InvalidNode, NoSuchNode, Roster, StillConnected
from meshwarden.controlplane.store.port import Ambiguous, Lease, Op, Put, Store, Unavailable
from meshwarden.sdk.mtls.refusal import BANNED, UNKNOWN_NODE
from meshwarden.v1 import node_service_pb2 as v1

WHERE = "192.0.2.1:4711"
N1 = SpiffeId.for_node("a.test", "eu", "n1")
WEB = "spiffe://a.test/tenant/acme/service/web"


def roster_of(world: Any, store: Any = None) -> Roster:
    store = store or world.store
    denies = Denies(store, world.audit, world.clock)
    return Roster(store, denies, Issued(store, world.clock), world.audit, world.clock)


@pytest.fixture
def roster(world: Any) -> Roster:
    return roster_of(world)


def csr() -> bytes:
    return make_csr(new_key())


async def join(world: Any, node: str = "n1", token: str | None = None, request: bytes | None = None) -> VerifiedPeer:
    token = token or await world.tokens.create(node)
    answer = await world.nodes.attest(v1.AttestRequest(join_token=token, csr=request or csr()), WHERE, "1")
    return verify_chain(answer.chain, {"a.test": await world.authority.bundle()}, world.now)


async def sign(world: Any, peer: Any, count: int = 1) -> list[str]:
    """The serial numbers of certificates of acme/web."""
    requests = [v1.WorkloadCsr(tenant="acme", entry="web", csr=csr()) for _ in range(count)]
    answer = await world.nodes.sign_workloads(peer, requests)
    return [f"{x509.load_der_x509_certificate(result.chain[0]).serial_number:x}" for result in answer.results]


async def denies(world: Any) -> list[DenyRecord]:
    return [DenyRecord.decode(item.key, item.value) for item in (await world.store.range(DENIES)).records]


async def denied(world: Any) -> list[DenyRecord]:
    """The certificates that are; the one that the node joined with is denied for whatever was signed on its word."""
    return [record for record in await denies(world) if record.deny.spiffe_id]


async def refused(world: Any, peer: Any) -> set[str]:
    """With which word the node is refused, whatever it asks."""
    words = set()
    for ask in (
        lambda: world.nodes.renew(peer, csr()),
        lambda: world.nodes.sign_workloads(peer, [v1.WorkloadCsr(tenant="acme", entry="web", csr=csr())]),
        lambda: world.nodes.joined(peer, "/meshwarden.v1.NodeService/Sync"),
    ):
        with pytest.raises(Denied) as caught:
            await ask()
        assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED
        assert caught.value.trailing == (("meshwarden-refusal", caught.value.code),)
        words.add(caught.value.code)
    return words


async def test_a_ban_is_sticky_and_denies_what_the_node_has(world: Any, roster: Roster) -> None:
    await world.entry("web", "n1", "n2")
    peer, other = await join(world), await join(world, "n2")
    serials, others = await sign(world, peer, 3), await sign(world, other)
    unused = await world.tokens.create("n1")
    assert await roster.ban("n1", "stolen", "ann") == 3
    found = await denied(world)
    assert {record.deny.serial for record in found} == set(serials)
    assert {record.deny.spiffe_id for record in found} == {WEB}
    assert not {*others} & {record.deny.serial for record in found}
    assert await refused(world, peer) == {BANNED}
    with pytest.raises(Denied, match=r"banned since .*: stolen") as caught:
        await join(world, token=unused)
    assert caught.value.code == BANNED
    with pytest.raises(Denied, match="banned"):
        await join(world)
    assert (calls := await world.events("node.banned_call"))
    assert all(fields == {"node": "n1"} for fields in calls)
    assert await sign(world, other)
    # A second ban keeps the first, and an eviction finds nothing.
    assert await roster.ban("n1", "again", "bob") == 3
    with pytest.raises(NoSuchNode):
        await roster.evict("n1", "", "bob")
    assert [event["reason"] for event in await world.events("node.ban")] == ["stolen"]
    await roster.unban("n1", "ann")
    assert await refused(world, peer) == {UNKNOWN_NODE}
    # The token that the ban has not let through is still good; certificates of before stay no good.
    again = await join(world, token=unused)
    assert await refused(world, peer) == {UNKNOWN_NODE}
    assert await sign(world, again)
    assert len(await denied(world)) == 3


async def test_a_node_that_has_not_joined_can_be_banned(world: Any, roster: Roster) -> None:
    assert await roster.ban("n1", "", "ann") == 0
    with pytest.raises(Denied, match="banned"):
        await join(world)
    with pytest.raises(NoSuchNode, match="isn't banned"):
        await roster.unban("n2", "ann")


async def test_an_evicted_node_comes_back_by_a_new_token_not_by_the_old(world: Any, roster: Roster) -> None:
    await world.entry("web", "n1")
    token, request = await world.tokens.create("n1"), csr()
    peer = await join(world, token=token, request=request)
    (serial,) = await sign(world, peer)
    await roster.evict("n1", "rebuilt", "ann")
    assert await refused(world, peer) == {UNKNOWN_NODE}
    # The same token and key, within the minute in which a lost reply is repeated.
    with pytest.raises(Denied, match="the node was evicted or has joined again since"):
        await join(world, token=token, request=request)
    again = await join(world)
    assert again.serial != peer.serial
    assert await sign(world, again)
    assert await refused(world, peer) == {UNKNOWN_NODE}
    assert await denied(world) == []
    assert serial
    with pytest.raises(Denied, match="has joined again since"):
        await join(world, token=token, request=request)


async def test_renewed_certificates_are_good_beside_the_present_one(world: Any) -> None:
    await world.entry("web", "n1")
    peers = [await join(world)]
    for _ in range(3):
        answer = await world.nodes.renew(peers[-1], csr())
        peers.append(verify_chain(answer.chain, {"a.test": await world.authority.bundle()}, world.now))
    assert len({peer.serial for peer in peers}) == 4
    for peer in peers:
        assert await sign(world, peer)


async def test_many_renewals_at_once_are_all_good(world: Any) -> None:
    await world.entry("web", "n1")
    peer = await join(world)
    answers = await asyncio.gather(*(world.nodes.renew(peer, csr()) for _ in range(3)))
    for answer in answers:
        renewed = verify_chain(answer.chain, {"a.test": await world.authority.bundle()}, world.now)
        assert await sign(world, renewed)


class Meanwhile:
    """A store in which something happens just before a commit with such a key."""

    def __init__(self, store: Store, prefix: str, act: Any) -> None:
        self._store, self._prefix, self._act = store, prefix, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, ops: Sequence[Op], *, fence: Lease | None = None) -> int:
        if self._act is not None and any(op.key.startswith(self._prefix) and isinstance(op, Put) for op in ops):
            act, self._act = self._act, None
            await act()
        return await self._store.commit(ops, fence=fence)


@pytest.mark.parametrize("end", ["ban", "evict"])
async def test_who_is_removed_between_signing_and_answering_gets_nothing(world: Any, roster: Roster, end: str) -> None:
    await world.entry("web", "n1")
    peer = await join(world)

    async def remove() -> None:
        await (roster.ban("n1", "", "ann") if end == "ban" else roster.evict("n1", "", "ann"))

    for prefix in (ISSUED, NODES):
        nodes = world.identity(Meanwhile(world.store, prefix, remove))
        signing = nodes.sign_workloads(peer, [v1.WorkloadCsr(tenant="acme", entry="web", csr=csr())])
        renewing = nodes.renew(peer, csr())
        wanted, other = (signing, renewing) if prefix == ISSUED else (renewing, signing)
        other.close()
        with pytest.raises(Denied):
            await wanted
        assert await Issued(world.store, world.clock).live("n1") == []
        if end == "ban":
            await roster.unban("n1", "ann")
        peer = await join(world)
    token = await world.tokens.create("n2")
    nodes = world.identity(Meanwhile(world.store, NODES, lambda: roster.ban("n2", "", "ann")))
    with pytest.raises(Denied, match="banned"):
        await nodes.attest(v1.AttestRequest(join_token=token, csr=csr()), WHERE, "1")


async def test_a_failed_deny_is_made_good_by_a_second_ban(world: Any) -> None:
    await world.entry("web", "n1")
    await sign(world, await join(world), 2)

    async def fail() -> None:
        raise Unavailable("no disk")

    failing = roster_of(world, Meanwhile(world.store, DENIES, fail))
    with pytest.raises(Unavailable):
        await failing.ban("n1", "", "ann")
    assert await refused(world, N1) == {BANNED}
    assert await failing.ban("n1", "", "ann") == 2
    assert len(await denied(world)) == 2


async def test_more_certificates_than_a_commit_takes_are_denied(world: Any, roster: Roster) -> None:
    await world.entry("web", "n1")
    await sign(world, await join(world), 120)
    assert await roster.ban("n1", "", "ann") == 120
    assert len({record.deny.serial for record in await denied(world)}) == 120


async def test_what_has_ended_is_neither_kept_nor_denied(world: Any, roster: Roster) -> None:
    await world.entry("web", "n1", "n10")
    await join(world)
    for _ in range(3):
        await sign(world, N1)
    world.pass_time(3601)
    (last,) = await sign(world, N1)
    assert [record.key.rpartition("-")[2] for record in (await world.store.range(ISSUED)).records] == [last]
    assert [one.serial for one in await Issued(world.store, world.clock).live("n1")] == [last]
    assert await Issued(world.store, world.clock).live("n") == []
    world.pass_time(3601)
    assert await roster.ban("n1", "", "ann") == 0


async def test_an_unreadable_batch_hides_no_other(world: Any, roster: Roster) -> None:
    await world.entry("web", "n1")
    await join(world)
    await sign(world, N1)
    for number, noise in enumerate((b"", b"[]", b'{"issued": {"a": {"b": "c"}}}', b'{"issued": 1}')):
        await world.store.commit([Put(f"{ISSUED}n1/999999999999-{number}", noise)])
    assert await roster.ban("n1", "", "ann") == 1


async def test_the_last_end_of_a_batch_counts(world: Any) -> None:
    peer = await join(world)
    stored, _ = await world.store.get(NODES + "n1")
    record = SimpleNamespace(node="n1", key=NODES + "n1", revision=stored.revision)
    issued = Issued(world.store, world.clock)
    early, late = (Certificate(WEB, serial, world.now + timedelta(minutes=m)) for serial, m in (("a1", 1), ("b2", 9)))
    await issued.add(record, [early, late])  # type: ignore[arg-type]
    assert peer
    world.pass_time(120)
    assert await issued.live("n1") == [late]


async def test_forgetting_takes_all_but_the_ban(world: Any, roster: Roster) -> None:
    await join(world)
    await world.store.commit([Put("/resource/Endpoint/acme/n1-web", b"x")])
    here = {"is_known": True, "is_connected": True}
    with pytest.raises(StillConnected, match="stop its agent first"):
        await roster.forget("n1", [], "ann", **here)
    keys = ["/resource/Endpoint/acme/n1-web", "/resource/Endpoint/acme/gone"]
    await roster.forget("n1", keys, "ann", is_known=True, is_connected=False)
    assert not (await world.store.range("/resource/Endpoint/")).records
    assert await refused(world, N1) == {UNKNOWN_NODE}
    with pytest.raises(NoSuchNode):
        await roster.forget("n1", [], "ann", is_known=False, is_connected=False)
    await roster.ban("n1", "", "ann")
    await roster.forget("n1", [], "ann", is_known=True, is_connected=False)
    assert len((await world.store.range(BANS)).records) == 1


@pytest.mark.parametrize("name", ["", "N1", "a/b", "a" * 64, "n1\n", "..", "ü"])
async def test_names_are_checked(roster: Roster, name: str) -> None:
    for act in (roster.ban(name, "", "a"), roster.unban(name, "a"), roster.evict(name, "", "a")):
        with pytest.raises(InvalidNode):
            await act
    with pytest.raises(InvalidNode):
        await roster.forget(name, [], "a", is_known=True, is_connected=False)


async def test_a_lost_answer_is_looked_up(world: Any) -> None:
    await join(world)

    async def lose() -> None:
        raise Ambiguous("the answer is lost")

    assert await roster_of(world, Meanwhile(world.store, BANS, lose)).ban("n1", "", "ann") == 0
    assert await refused(world, N1) == {BANNED}


@pytest.mark.parametrize("noise", [b"", b"[]", b"{}", b'{"time": "x", "by": "", "reason": ""}'])
async def test_a_ban_that_cannot_be_read_still_bans(world: Any, noise: bytes) -> None:
    await world.store.commit([Put(BANS + "n1", noise)])
    with pytest.raises(RecordError):
        await join(world)


async def test_a_ban_denies_the_tokens_of_the_nodes_workloads(world: Any, roster: Roster) -> None:
    await world.entry("web", "n1")
    peer = await join(world)
    joined = f"{peer.leaf.serial_number:x}"
    for _ in range(2):
        await roster.ban("n1", "stolen", "ann")
        (found,) = [one.deny for one in await denies(world) if not one.deny.spiffe_id]
        assert found.serial == joined
        assert timedelta(0) < found.not_after - world.now - TTL <= timedelta(seconds=2)
