import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from meshwarden.certs.authority.port import AuthorityUnavailable
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import InvalidCsr, make_csr
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.api.errors import status_of
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.join_token import InvalidToken, digest
from meshwarden.controlplane.identity.rate import Limited, Limits, Pace
from meshwarden.controlplane.identity.record import NODES, TOKENS, RecordError
from meshwarden.controlplane.store.port import Ambiguous, Delete, Lease, Op, Put, Store
from meshwarden.v1 import node_service_pb2 as v1

WHERE = "192.0.2.1:4711"
N1 = SpiffeId.for_node("a.test", "eu", "n1")
HOUR = timedelta(hours=1)


def csr() -> bytes:
    return make_csr(new_key())


async def attest(nodes: Any, token: str, request: bytes, address: str) -> v1.AttestResponse:
    answer: v1.AttestResponse = await nodes.attest(v1.AttestRequest(join_token=token, csr=request), address, "1")
    return answer


async def join(world: Any, node: str = "n1") -> v1.AttestResponse:
    return await attest(world.nodes, await world.tokens.create(node), csr(), WHERE)


def workload(entry: str = "web", tenant: str = "acme", request: bytes | None = None) -> v1.WorkloadCsr:
    return v1.WorkloadCsr(tenant=tenant, entry=entry, csr=csr() if request is None else request)


async def test_a_node_joins(world: Any) -> None:
    answer = await join(world)
    peer = verify_chain(answer.chain, {"a.test": Bundle.from_proto(answer.bundle)}, world.now)
    assert peer.spiffe_id == N1
    assert (answer.node, answer.region) == ("n1", "eu")
    assert peer.leaf.not_valid_after_utc - peer.leaf.not_valid_before_utc == HOUR
    (event,) = await world.events("node.attest")
    assert event["node"] == "n1"
    assert event["serial"] == peer.serial
    assert event["address"] == WHERE


async def test_the_token_is_stored_as_a_hash(world: Any) -> None:
    token = await world.tokens.create("n1")
    assert len(token) == 43  # 256 bits in base64
    page = await world.store.range("")
    assert [record.key for record in page.records] == [TOKENS + digest(token)]
    assert token.encode() not in page.records[0].value
    await attest(world.nodes, token, csr(), WHERE)
    assert token not in (world.directory / "audit.jsonl").read_text()


async def test_a_lost_reply_costs_nothing(world: Any) -> None:
    token, request = await world.tokens.create("n1"), csr()
    first = await attest(world.nodes, token, request, WHERE)
    world.pass_time(60)
    assert (await attest(world.nodes, token, request, "192.0.2.1:4712")).chain == first.chain
    (once,), (again,) = await world.events("node.attest"), await world.events("node.attest_repeat")
    assert again | {"rejoined": False} == once | {"address": "192.0.2.1:4712"}
    world.pass_time(1)
    with pytest.raises(Denied, match="used up"):
        await attest(world.nodes, token, request, WHERE)


async def test_a_token_joins_one_key(world: Any) -> None:
    token = await world.tokens.create("n1")
    await attest(world.nodes, token, csr(), WHERE)
    with pytest.raises(Denied, match="another key") as caught:
        await attest(world.nodes, token, csr(), "198.51.100.9:1")
    assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED
    assert "'n1'" in caught.value.message


async def test_of_many_at_once_one_joins(world: Any) -> None:
    token = await world.tokens.create("n1")
    answers = await asyncio.gather(
        *(attest(world.nodes, token, csr(), WHERE) for _ in range(8)), return_exceptions=True
    )
    joined = [answer for answer in answers if isinstance(answer, v1.AttestResponse)]
    assert len(joined) == 1
    assert all(isinstance(answer, Denied) for answer in answers if answer not in joined)
    assert len(await world.events("node.attest")) == 1


async def test_of_many_with_one_key_all_get_the_same(world: Any) -> None:
    token, request = await world.tokens.create("n1"), csr()
    answers = await asyncio.gather(*(attest(world.nodes, token, request, WHERE) for _ in range(3)))
    assert len({tuple(answer.chain) for answer in answers}) == 1
    assert len(await world.events("node.attest")) == 1


@pytest.mark.parametrize("token", ["", "x" * 43, "x" * 42, "../../x", "x\n" * 21 + "x", "ü" * 43, "x" * 100_000])
async def test_an_unknown_token(world: Any, token: str) -> None:
    with pytest.raises(Denied, match="unknown"):
        await attest(world.nodes, token, csr(), WHERE)


async def test_a_token_ends(world: Any) -> None:
    token = await world.tokens.create("n1", timedelta(seconds=5))
    world.pass_time(5)
    with pytest.raises(Denied, match="ended"):
        await attest(world.nodes, token, csr(), WHERE)


async def test_a_bad_request_leaves_the_token_good(world: Any) -> None:
    token = await world.tokens.create("n1")
    for bad in (b"", b"noise", csr()[:-1]):
        with pytest.raises(InvalidCsr):
            await attest(world.nodes, token, bad, WHERE)
    assert (await attest(world.nodes, token, csr(), WHERE)).node == "n1"


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(minutes=10, seconds=1), timedelta(seconds=-1)])
async def test_token_times_are_bounded(world: Any, ttl: timedelta) -> None:
    with pytest.raises(InvalidToken):
        await world.tokens.create("n1", ttl)


@pytest.mark.parametrize("node", ["", "N1", "a/b", "a" * 64, "n1\n", ".."])
async def test_node_names_are_checked(world: Any, node: str) -> None:
    with pytest.raises(InvalidToken):
        await world.tokens.create(node)


async def test_old_tokens_are_swept(world: Any) -> None:
    await world.tokens.create("n1")
    world.pass_time(3600 + 601)
    await world.tokens.create("n2")
    assert len((await world.store.range(TOKENS)).records) == 1


class Forgetful:
    """A store whose first commit of a node is written but whose answer is lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, ops: Sequence[Op], *, fence: Lease | None = None) -> int:
        revision = await self._store.commit(ops, fence=fence)
        if not self.lost and any(op.key.startswith(NODES) for op in ops):
            self.lost = True
            raise Ambiguous("the answer is lost")
        return revision


async def test_an_ambiguous_commit_is_looked_up(world: Any) -> None:
    store = Forgetful(world.store)
    answer = await attest(world.identity(store), await world.tokens.create("n1"), csr(), WHERE)
    assert store.lost
    assert answer.node == "n1"


async def test_a_node_renews(world: Any) -> None:
    await join(world)
    request_key = new_key()
    answer = await world.nodes.renew(N1, make_csr(request_key))
    leaf = x509.load_der_x509_certificate(answer.chain[0])
    assert leaf.public_key() == request_key.public_key()
    assert [event["node"] for event in await world.events("node.renew")] == ["n1"]


@pytest.mark.parametrize(
    "peer",
    [
        None,
        SpiffeId.for_node("a.test", "eu", "n2"),
        SpiffeId.for_node("a.test", "us", "n1"),
        SpiffeId.for_node("b.test", "eu", "n1"),
        SpiffeId.workload("a.test", "acme", "web"),
        SpiffeId.for_operator("a.test", "ann"),
        SpiffeId.control_plane("a.test", "eu"),
    ],
    ids=str,
)
async def test_nobody_else_renews_or_signs(world: Any, peer: SpiffeId | None) -> None:
    await join(world)
    await world.entry("web", "n1", "n2")
    with pytest.raises(Denied):
        await world.nodes.renew(peer, csr())
    with pytest.raises(Denied):
        await world.nodes.sign_workloads(peer, [workload()])


async def test_a_removed_node_is_nobody(world: Any) -> None:
    await join(world)
    await world.store.commit([Delete(NODES + "n1")])
    with pytest.raises(Denied, match="has not joined"):
        await world.nodes.renew(N1, csr())


async def test_signs_what_the_entry_says(world: Any) -> None:
    await join(world)
    await world.entry("web", "n1", svid_ttl=Duration(seconds=600, nanos=5), dns_names=["web.example"])
    key = new_key()
    (result,) = (await world.nodes.sign_workloads(N1, [workload(request=make_csr(key))])).results
    assert result.code == 0
    peer = verify_chain(result.chain, {"a.test": await world.authority.bundle()}, world.now)
    assert peer.spiffe_id == SpiffeId.workload("a.test", "acme", "web")
    assert peer.leaf.not_valid_after_utc - peer.leaf.not_valid_before_utc == timedelta(minutes=10)
    names = peer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web.example"]
    assert peer.leaf.public_key() == key.public_key()
    (event,) = await world.events("workload.sign")
    assert (event["node"], event["tenant"], event["entry"], event["serial"]) == ("n1", "acme", "web", peer.serial)
    assert event["entry_revision"] > 0


async def test_each_request_is_answered_by_itself(world: Any) -> None:
    await join(world)
    await world.entry("web", "n1")
    await world.entry("other", "n2")
    await world.entry("proud", "n1", dns_names=["controlplane.a.test"])
    requests = [
        workload(),
        workload("other"),
        workload("none"),
        workload("proud"),
        workload(request=b"noise"),
        workload(tenant="../x"),
        workload("web/../web"),
        workload("web", tenant="platform"),
        workload(),
    ]
    answer = await world.nodes.sign_workloads(N1, requests)
    codes = [result.code for result in answer.results]
    assert codes == [0, 7, 7, 9, 3, 7, 7, 7, 0]
    assert all(bool(result.chain) == (result.code == 0) for result in answer.results)
    other, none = (answer.results[number].message for number in (1, 2))
    assert other.replace("other", "none") == none  # a node learns nothing of another's entries
    assert len(await world.events("workload.sign_denied")) == 7


@pytest.mark.parametrize("name", ["console.example", "localhost", "x.localhost"])
async def test_no_workload_gets_a_name_by_which_browsers_find_us(world: Any, name: str) -> None:
    await join(world)
    await world.entry("proud", "n1", dns_names=["proud.example", name])
    (result,) = (await world.nodes.sign_workloads(N1, [workload("proud")])).results
    assert (result.code, "is the control plane's" in result.message, result.chain) == (9, True, [])


async def test_a_batch_is_bounded(world: Any) -> None:
    await join(world)
    await world.entry("web", "n1")
    answer = await world.nodes.sign_workloads(N1, [workload(request=b"noise")] * 501)
    assert [result.code for result in answer.results] == [3] * 500 + [8]


async def test_a_node_is_rate_limited_alone(world: Any) -> None:
    await join(world)
    await join(world, "n2")
    noise = workload("none")
    for _ in range(4):
        answer = await world.nodes.sign_workloads(N1, [noise] * 500)
        assert {result.code for result in answer.results} == {7}
    (limited,) = (await world.nodes.sign_workloads(N1, [noise])).results
    assert limited.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert "try again in" in limited.message
    (free,) = (await world.nodes.sign_workloads(SpiffeId.for_node("a.test", "eu", "n2"), [noise])).results
    assert free.code == 7
    world.pass_time(1)
    assert (await world.nodes.sign_workloads(N1, [noise])).results[0].code == 7


async def test_a_tenant_is_limited_alone_on_all_nodes_together(world: Any) -> None:
    world.nodes = world.identity(limits=Limits(signs_of_tenant=Pace(1.0, 2)))
    for node in ("n1", "n2"):
        await join(world, node)
        await world.entry("web", "n1", "n2")
    await world.entry("web", "n1", tenant="globex")
    n2 = SpiffeId.for_node("a.test", "eu", "n2")
    codes = [(await world.nodes.sign_workloads(node, [workload()])).results[0].code for node in (N1, n2, N1)]
    assert codes == [0, 0, 8]
    (other,) = (await world.nodes.sign_workloads(N1, [workload(tenant="globex")])).results
    assert other.code == 0
    # What is asked for in vain is not the tenant's.
    world.pass_time(1)
    noise = (await world.nodes.sign_workloads(N1, [workload("none")] * 50)).results
    assert {result.code for result in noise} == {7}
    (free,) = (await world.nodes.sign_workloads(n2, [workload()])).results
    assert free.code == 0


async def test_an_address_is_limited_alone_whatever_it_shows(world: Any) -> None:
    world.nodes = world.identity(limits=Limits(attests_of_address=Pace(1.0, 3)))
    for number in range(3):
        with pytest.raises(Denied):
            await attest(world.nodes, "a" * 43, csr(), f"[2001:db8::{number}]:4711")
    good = await world.tokens.create("n1")
    with pytest.raises(Limited, match="address 2001:db8::/64 asks for more than 1 attestations a second") as limited:
        await attest(world.nodes, good, csr(), "[2001:db8::ff]:4711")
    assert limited.value.wait_s == 1.0
    # It has cost the token nothing, and nobody else.
    assert (await attest(world.nodes, good, csr(), "[2001:db8:0:1::1]:4711")).node == "n1"
    world.pass_time(1)
    assert (await attest(world.nodes, await world.tokens.create("n2"), csr(), "[2001:db8::ff]:4711")).node == "n2"


async def test_who_is_over_a_limit_is_told_when_there_is_more_for_it(world: Any) -> None:
    """Each of a batch by itself: what is left goes to the first, and the others come one after the other."""
    await join(world)
    await world.entry("web", "n1")
    for _ in range(4):
        await world.nodes.sign_workloads(N1, [workload("none")] * 500)
    world.pass_time(0.04)  # two more, at 50 a second
    answers = (await world.nodes.sign_workloads(N1, [workload("none"), workload(), *[workload()] * 3])).results
    assert [answer.code for answer in answers] == [7, 0, 8, 8, 8]
    assert [answer.retry_after.ToMilliseconds() for answer in answers] == [0, 0, 20, 40, 60]


async def test_while_the_upstream_is_away_a_request_is_told_when_to_come_again(world: Any, monkeypatch: Any) -> None:
    await join(world)
    await world.entry("web", "n1")

    async def away(*_: Any) -> Any:
        raise AuthorityUnavailable("Vault is sealed; unseal it")

    monkeypatch.setattr(world.authority, "sign", away)
    (answer,) = (await world.nodes.sign_workloads(N1, [workload()])).results
    assert (answer.code, answer.message) == (14, "Vault is sealed; unseal it")
    assert answer.retry_after.ToMilliseconds() == 1000
    code, _, details = status_of(AuthorityUnavailable("away")) or pytest.fail("it has no status")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(details, error_details_pb2.RetryInfo)
    assert details.retry_delay.ToMilliseconds() == 1000


async def test_damaged_records_are_not_believed(world: Any) -> None:
    token = await world.tokens.create("n1")
    await world.store.commit([Put(TOKENS + digest(token), b"noise")])
    with pytest.raises(Exception, match="not a join token"):
        await attest(world.nodes, token, csr(), WHERE)


class Overtaken:
    """A store in which somebody else acts just before the node's record is read."""

    def __init__(self, store: Store, act: Any) -> None:
        self._store = store
        self._act = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str) -> Any:
        if key.startswith(NODES) and self._act is not None:
            act, self._act = self._act, None
            await act()
        return await self._store.get(key)


async def test_who_is_overtaken_between_signing_and_storing_gets_nothing(world: Any) -> None:
    token = await world.tokens.create("n1")
    thief = world.identity(Overtaken(world.store, lambda: attest(world.nodes, token, csr(), WHERE)))
    with pytest.raises(Denied, match="another key"):
        await attest(thief, token, csr(), "198.51.100.9:1")
    assert len(await world.events("node.attest")) == 1


async def test_a_token_for_some_tenants_joins_for_these_alone(world: Any) -> None:
    await world.entry("web", "n1")
    await world.entry("orders", "n1", tenant="platform")
    token = await world.tokens.create("n1", tenants=["platform", "globex", "platform"])
    await attest(world.nodes, token, csr(), WHERE)
    assert (await world.events("node.attest"))[0]["tenants"] == ["globex", "platform"]
    requests = [workload(), workload("orders", tenant="platform"), workload("none")]
    refused, signed, hidden = (await world.nodes.sign_workloads(N1, requests)).results
    assert (refused.code, signed.code) == (7, 0)
    # Whether there is such an entry isn't told.
    assert refused.message == hidden.message == "node n1 has joined for globex, platform alone, not for tenant acme"
    await join(world)  # with a token for any tenant's
    assert (await world.nodes.sign_workloads(N1, [workload()])).results[0].code == 0


@pytest.mark.parametrize("tenant", ["", "Acme", "a/b", "acme\n", "a" * 64])
async def test_tenants_of_tokens_are_checked(world: Any, tenant: str) -> None:
    with pytest.raises(InvalidToken, match="tenant"):
        await world.tokens.create("n1", tenants=["acme", tenant])


@pytest.mark.parametrize("tenants", [None, "acme", {"acme": 1}, [1], [""]])
async def test_a_scope_that_cannot_be_read_is_not_taken_for_none(world: Any, tenants: Any) -> None:
    await join(world)
    stored, _ = await world.store.get(NODES + "n1")
    await world.store.commit([Put(stored.key, json.dumps({**json.loads(stored.value), "tenants": tenants}).encode())])
    with pytest.raises(RecordError, match="not a node"):
        await world.nodes.sign_workloads(N1, [workload()])
