"""How nodes attest otherwise than by a token, as seen from the one place that all attestations pass."""

import asyncio
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hvac.exceptions import Forbidden

sys.path.insert(0, str(Path(__file__).parents[1] / "certs"))

from test_possession import CA, CA_KEY, KEY, LEAF, certify, ders

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.csr import InvalidCsr, make_csr
from meshwarden.certs.possession import prove
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.identity.attestor_vault import FIELDS as VAULT_FIELDS
from meshwarden.controlplane.identity.attestor_vault import VaultAttestor
from meshwarden.controlplane.identity.attestor_x509pop import FIELDS, PossessionAttestor
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node_name import InvalidTemplate, NameTemplate
from meshwarden.controlplane.identity.rate import Limited
from meshwarden.controlplane.identity.record import NODES, NodeRecord
from meshwarden.controlplane.identity.vault_token import WAITING
from meshwarden.controlplane.store.port import Delete
from meshwarden.v1 import node_service_pb2 as v1

WHERE = "192.0.2.1:4711"
TOKEN = "s.abcdefghijklmnop"


@pytest.fixture
def pop(world: Any) -> Any:
    world.attestors["x509pop"] = PossessionAttestor([CA], NameTemplate("{common_name}", FIELDS), ["acme"])
    world.nodes = world.identity()
    return world


def request_of(*chain: Any) -> v1.AttestRequest:
    return v1.AttestRequest(x509pop=v1.X509PopProof(chain=ders(*chain)), csr=make_csr(new_key()))


async def challenged(world: Any, request: v1.AttestRequest, key: Any = KEY, connection: str = "1") -> v1.AttestRequest:
    """The request with the answer to its challenge."""
    answer = await world.nodes.attest(request, WHERE, connection)
    assert not answer.chain
    request.answer.state = answer.challenge.state
    request.answer.answer = prove(key, answer.challenge.data, request.csr)
    return request


async def refusal(world: Any, request: v1.AttestRequest, connection: str = "1") -> Denied:
    with pytest.raises(Denied) as caught:
        await world.nodes.attest(request, WHERE, connection)
    return caught.value


async def stored(world: Any, node: str) -> NodeRecord | None:
    found, _ = await world.store.get(NODES + node)
    return NodeRecord.decode(found.key, found.value) if found is not None else None


async def test_a_certificate_and_its_key_make_a_node(pop: Any) -> None:
    answer = await pop.nodes.attest(await challenged(pop, request_of(LEAF)), WHERE, "1")
    assert (answer.node, answer.region) == ("node-a", "eu")
    record = await stored(pop, "node-a")
    assert record is not None
    assert (record.attestor, record.tenants) == ("x509pop", ("acme",))
    (event,) = await pop.events("node.attest")
    assert (event["attestor"], event["tenants"]) == ("x509pop", ["acme"])
    assert len(event["certificate"]) == 40
    # Again, as after a lost reply or a lost disk: what a machine has is not used up.
    again = await pop.nodes.attest(await challenged(pop, request_of(LEAF)), WHERE, "1")
    assert again.chain != answer.chain
    assert (await pop.events("node.attest"))[1]["rejoined"]


async def test_an_answer_is_good_for_its_request_on_its_connection_for_a_while(pop: Any) -> None:
    answered = await challenged(pop, request_of(LEAF))
    other = v1.AttestRequest()
    other.CopyFrom(answered)
    other.csr = make_csr(new_key())
    for request, connection in ((other, "1"), (answered, "2")):
        denied = await refusal(pop, request, connection)
        assert denied.status is grpc.StatusCode.UNAVAILABLE
        assert "begin the attestation anew" in denied.message
    pop.pass_time(31)
    assert "has ended" in (await refusal(pop, answered)).message
    assert await stored(pop, "node-a") is None
    # Another control plane, or this one once it has started again, has given no such challenge.
    answered, pop.nodes = await challenged(pop, request_of(LEAF)), pop.identity()
    assert (await refusal(pop, answered)).status is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("state", [b"x", b"x" * 19, b"x" * 20, b"x" * 36, b"x" * 200])
async def test_a_forged_challenge(pop: Any, state: bytes) -> None:
    answered = await challenged(pop, request_of(LEAF))
    for forged in (state, answered.answer.state[:-1], b"\xff" * 8 + answered.answer.state[8:]):
        answered.answer.state = forged
        assert "was not made for this request" in (await refusal(pop, answered)).message
    token = v1.AttestRequest(join_token=await pop.tokens.create("n1"), csr=answered.csr, answer=answered.answer)
    assert "was not made for this request" in (await refusal(pop, token)).message


async def test_another_key_or_an_unknown_authority_make_no_node(pop: Any) -> None:
    wrong = await refusal(pop, await challenged(pop, request_of(LEAF), new_key()))
    assert "isn't signed with the certificate's key" in wrong.message
    key = ec.generate_private_key(ec.SECP256R1())
    stranger = certify("node-a", key, (certify("machines", key, None, ca=True), key))
    assert "no valid path" in (await refusal(pop, await challenged(pop, request_of(stranger), key))).message
    assert await stored(pop, "node-a") is None


@pytest.mark.parametrize("name", ["Node-A", "node_a", "node-a.example", "", " ", "a" * 64, "../x", "node-a\n", "ü"])
async def test_a_certificate_of_no_node(pop: Any, name: str) -> None:
    if not name:
        pop.attestors["x509pop"]._template = NameTemplate("{dns_label}", FIELDS)
    leaf = certify(name or "node-a", KEY, (CA, CA_KEY))
    assert "names no node" in (await refusal(pop, await challenged(pop, request_of(leaf)))).message


async def test_a_name_is_made_as_the_template_says(pop: Any) -> None:
    pop.attestors["x509pop"]._template = NameTemplate("rack1-{dns_label}-{serial}", FIELDS)
    leaf = certify("x", KEY, (CA, CA_KEY), dns=["db.dc1.example"])
    node = (await pop.nodes.attest(await challenged(pop, request_of(leaf)), WHERE, "1")).node
    assert node == f"rack1-db-{leaf.serial_number:x}"[:63]


async def test_what_costs_is_not_begun_for_a_certificate_that_costs(pop: Any) -> None:
    request = request_of(LEAF)
    request.x509pop.chain[:] = [bytes(8193)]
    assert "more than 8192 bytes" in (await refusal(pop, request)).message


async def test_one_attestor_does_not_take_anothers_node(pop: Any) -> None:
    joined = v1.AttestRequest(join_token=await pop.tokens.create("node-a"), csr=make_csr(new_key()))
    await pop.nodes.attest(joined, WHERE, "1")
    denied = await refusal(pop, await challenged(pop, request_of(LEAF)))
    assert "has joined by join_token, and x509pop can't take its place" in denied.message
    await pop.store.commit([Delete(NODES + "node-a")])
    await pop.nodes.attest(await challenged(pop, request_of(LEAF)), WHERE, "1")
    # A token is an operator's own word.
    joined = v1.AttestRequest(join_token=await pop.tokens.create("node-a"), csr=make_csr(new_key()))
    await pop.nodes.attest(joined, WHERE, "1")
    assert (await stored(pop, "node-a")).attestor == "join_token"  # type: ignore[union-attr]


async def test_a_proof_that_nobody_judges(world: Any) -> None:
    for request in (request_of(LEAF), v1.AttestRequest(vault=v1.VaultProof(token=TOKEN), csr=b"x"), v1.AttestRequest()):
        assert "this control plane takes join_token" in (await refusal(world, request)).message


async def test_an_address_and_a_node_are_held_to_a_pace(pop: Any) -> None:
    for _ in range(100):
        await pop.nodes.attest(request_of(LEAF), WHERE, "1")
    with pytest.raises(Limited, match=r"address 192\.0\.2\.1 asks for more than 10 attestations a second"):
        await pop.nodes.attest(request_of(LEAF), "192.0.2.1:9", "2")
    assert (await pop.nodes.attest(request_of(LEAF), "192.0.2.2:4711", "3")).challenge.data
    pop.pass_time(10)
    for _ in range(20):
        await pop.nodes.attest(await challenged(pop, request_of(LEAF)), WHERE, "1")
    request = await challenged(pop, request_of(LEAF))
    request.csr = b"noise"  # what is limited is looked at no further
    request.ClearField("answer")
    request = await challenged(pop, request)
    with pytest.raises(Limited, match=r"node node-a asks for more than 0\.2 certificates a second"):
        await pop.nodes.attest(request, WHERE, "1")
    pop.pass_time(5)
    request.ClearField("answer")
    with pytest.raises(InvalidCsr):
        await pop.nodes.attest(await challenged(pop, request), WHERE, "1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("node", "names no field"),
        ("", "names no field"),
        ("{}", "fields in braces"),
        ("{common_name", "fields in braces"),
        ("{common_name!r}", "fields in braces"),
        ("{common_name:>9}", "fields in braces"),
        ("{0.__class__}", "fields in braces"),
        ("Rack-{serial}", "fields in braces"),
        ("{serial}\n", "fields in braces"),
        ("{password}", "no such field"),
        ("{serial.x}", "no such field"),
        ("{metadata}", "no such field"),
        ("a" * 300 + "{serial}", "fields in braces"),
    ],
)
def test_templates_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(InvalidTemplate, match=reason):
        NameTemplate(text, (*FIELDS, "metadata."))


# -- Vault


@dataclass
class FakeVault:
    """A Vault whose answers are as a test wants them; it stands for `VaultClient` and for hvac's client alike."""

    found: Any
    entity: Any
    hold: asyncio.Event | None = None

    async def call(self, path: str, work: Any, capability: str = "update") -> Any:
        if self.hold is not None:
            await self.hold.wait()
        return work(self)

    async def tend(self) -> timedelta:
        return timedelta(seconds=1)

    @property
    def auth(self) -> Any:
        return SimpleNamespace(token=SimpleNamespace(lookup=self._lookup))

    @property
    def secrets(self) -> Any:
        return SimpleNamespace(identity=SimpleNamespace(read_entity=self._read_entity))

    def _lookup(self, token: str) -> Any:
        assert token == TOKEN
        if isinstance(self.found, Exception):
            raise self.found
        return {"data": self.found}

    def _read_entity(self, entity_id: str) -> Any:
        assert entity_id == "e1"
        return {"data": self.entity}


GOOD = {
    "path": "auth/approle/login",
    "entity_id": "e1",
    "policies": ["default", "meshwarden-node"],
    "meta": {"role_name": "node-a"},
    "accessor": "acc1",
}
ENTITY = {
    "name": "entity-a",
    "metadata": {"node": "node-e"},
    "aliases": [{"mount_path": "auth/approle/", "name": "al"}],
}


def vault_of(token: Any = None, entity: Any = None, template: str = "{metadata.role_name}") -> VaultAttestor:
    fake = FakeVault(GOOD if token is None else token, ENTITY if entity is None else entity)
    return VaultAttestor(fake, NameTemplate(template, VAULT_FIELDS), mount="approle", policy="meshwarden-node")


async def by_vault(world: Any, attestor: VaultAttestor) -> v1.AttestResponse:
    world.attestors["vault"] = attestor
    request = v1.AttestRequest(vault=v1.VaultProof(token=TOKEN), csr=make_csr(new_key()))
    answer: v1.AttestResponse = await world.identity().attest(request, WHERE, "1")
    return answer


@pytest.mark.parametrize(
    ("template", "node"),
    [
        ("{metadata.role_name}", "node-a"),
        ("{entity_name}", "entity-a"),
        ("{entity_metadata.node}", "node-e"),
        ("x-{alias_name}", "x-al"),
    ],
)
async def test_a_login_makes_a_node(world: Any, template: str, node: str) -> None:
    assert (await by_vault(world, vault_of(template=template))).node == node
    (event,) = await world.events("node.attest")
    assert (event["attestor"], event["accessor"]) == ("vault", "acc1")
    assert TOKEN not in (world.directory / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("token", "entity", "reason"),
    [
        (Forbidden(errors=["bad token"]), None, "unknown or has ended"),
        ({**GOOD, "path": "auth/token/create"}, None, "nodes log in at auth/approle/login"),
        ({**GOOD, "path": "auth/approle2/login"}, None, "nodes log in at"),
        ({**GOOD, "path": None}, None, "nodes log in at"),
        ({**GOOD, "entity_id": ""}, None, "it has no entity"),
        ({**GOOD, "policies": ["default", "meshwarden-nodes"]}, None, "has no policy 'meshwarden-node'"),
        ({**GOOD, "policies": None}, None, "has no policy"),
        (None, {**ENTITY, "disabled": True}, "disabled"),
        ({**GOOD, "meta": None}, None, "names no node"),
        ({**GOOD, "meta": {"role_name": "../etc"}}, None, "names no node"),
        ({**GOOD, "meta": {"role_name": ["node-a"]}}, None, "names no node"),
        ({}, None, "nodes log in at"),
    ],
)
async def test_other_logins_make_no_node(world: Any, token: Any, entity: Any, reason: str) -> None:
    with pytest.raises(Denied, match=reason):
        await by_vault(world, vault_of(token, entity))
    assert not (await world.store.range(NODES)).records


async def test_a_control_plane_that_may_not_ask_says_so_and_blames_no_node(world: Any) -> None:
    class Refusing:
        async def call(self, path: str, work: Any, capability: str = "update") -> Any:
            raise AuthorityError("the login may not")

    attestor = vault_of()
    attestor._tokens._vault = Refusing()  # type: ignore[assignment]
    with pytest.raises(AuthorityUnavailable, match="can't be looked up: the login may not"):
        await by_vault(world, attestor)


async def test_strangers_queue_at_vault_only_so_far(world: Any) -> None:
    attestor = vault_of()
    hold = attestor._tokens._vault.hold = asyncio.Event()  # type: ignore[attr-defined]
    world.attestors["vault"] = attestor
    nodes = world.identity()
    request = v1.AttestRequest(vault=v1.VaultProof(token=TOKEN), csr=make_csr(new_key()))
    waiting = [asyncio.ensure_future(nodes.attest(request, f"192.0.2.{i}:1", "1")) for i in range(WAITING)]
    while attestor._tokens._waiting < WAITING:  # noqa: ASYNC110 - nothing signals it
        await asyncio.sleep(0)
    with pytest.raises(AuthorityUnavailable, match="wait for Vault"):
        await nodes.attest(request, WHERE, "1")
    hold.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert attestor._tokens._waiting == 0


async def test_a_token_is_one_nodes_alone_even_if_it_comes_many_times_at_once(pop: Any) -> None:
    token = await JoinTokens(pop.store, pop.clock).create("n1")
    requests = [v1.AttestRequest(join_token=token, csr=make_csr(new_key())) for _ in range(8)]
    replicas = [pop.identity() for _ in range(4)]
    tries = [replicas[n % 4].attest(request, WHERE, str(n)) for n, request in enumerate(requests)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(answer, v1.AttestResponse) for answer in answers) == 1
    assert sum(isinstance(answer, Denied) for answer in answers) == 7
