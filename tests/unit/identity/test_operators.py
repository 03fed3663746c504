import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import InvalidCsr, make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import VerifiedPeer, verify_chain
from meshwarden.controlplane.identity import operators as under_test
from meshwarden.controlplane.identity.authorize import TABLE, Denied
from meshwarden.controlplane.identity.operators import (
    OPERATORS,
    OperatorRecord,
    OperatorRole,
    Operators,
    TooManyOperators,
    UnknownOperator,
    key_of,
    needed,
)
from meshwarden.controlplane.store.port import Put

APPLY, STATUS = "/meshwarden.v1.ResourceService/Apply", "/meshwarden.v1.AdminService/GetStatus"
TOKEN, RENEW = "/meshwarden.v1.AdminService/CreateJoinToken", "/meshwarden.v1.OperatorService/RenewOperator"
CREATE = "/meshwarden.v1.OperatorService/CreateOperator"
# {method: who may at least}: written by hand, so that a method that is new is thought about.
VIEWING = {
    *("GetStatus", "Explain", "ListCalls", "GetGraph", "SearchTraces", "GetTrace", "GetQuotas", "ListDenied"),
    *("GetCosts", "ListRollouts", "WatchMesh"),
    "ListCertificates",
    *(
        "ListEvents",
        "VerifyEvents",
        "ListRoots",
        "ListJwtKeys",
        "ListBundles",
        "ListNodes",
        "ListOperators",
        "RenewOperator",
        "LoginOperator",
        "Get",
        "List",
        "Watch",
        "Check",
    ),
    *("ListRevisions", "GetRevision", "GetProgress", "WatchProgress", "ListDataPlanes", "GetDataPlane"),
    *("Preview", "Replay", "SuggestAccess", "ParseManifest"),
    *("CreateSessionCode", "PreviewSession", "CreateSession", "GetSession", "DeleteSession"),
    "ServerReflectionInfo",
}


async def peer_of(authority: MemoryAuthority, identity: SpiffeId, now: Any) -> VerifiedPeer:
    """A caller with a good certificate of that name."""
    chain = await authority.sign(LeafTemplate(identity, timedelta(hours=1)), new_key().public_key(), now)
    return verified(chain, await authority.bundle(), now)


def verified(chain: Any, bundle: Bundle, now: Any) -> VerifiedPeer:
    return verify_chain([one.public_bytes(Encoding.DER) for one in chain], {bundle.trust_domain: bundle}, now)


class Desk:
    """Operators on a real store, as an admin uses them."""

    def __init__(self, world: Any, operators: Operators) -> None:
        self.world, self.operators = world, operators

    async def create(self, tenant: str, name: str, role: OperatorRole) -> VerifiedPeer:
        record = OperatorRecord(
            tenant, name, role, timedelta(hours=8), "spiffe://a.test/operator/local", self.world.now
        )
        chain = await self.operators.create(record, make_csr(new_key()))
        return verified(chain, await self.world.authority.bundle(), self.world.now)

    async def peer(self, name: str, tenant: str | None = None, domain: str = "a.test") -> VerifiedPeer:
        authority = self.world.authority if domain == "a.test" else MemoryAuthority(domain, self.world.clock)
        return await peer_of(authority, SpiffeId.for_operator(domain, name, tenant), self.world.now)

    def may(self, peer: VerifiedPeer, method: str) -> bool:
        try:
            self.operators.admit(peer, method)
        except Denied:
            return False
        return True


@asynccontextmanager
async def desk_of(world: Any, **words: Any) -> AsyncIterator[Desk]:
    operators = Operators(world.authority, world.store, world.audit, world.clock, trust_domain="a.test", **words)
    async with anyio.create_task_group() as group:
        await group.start(operators.run)
        yield Desk(world, operators)
        group.cancel_scope.cancel()


async def test_each_goes_as_far_as_its_role(world: Any) -> None:
    async with desk_of(world) as desk:
        who = {role: await desk.create("acme", role.name.lower(), role) for role in OperatorRole}
        for role, methods in (
            (OperatorRole.VIEWER, {STATUS, RENEW}),
            (OperatorRole.EDITOR, {STATUS, RENEW, APPLY}),
            (OperatorRole.ADMIN, {STATUS, RENEW, APPLY, CREATE}),
        ):
            for method in (STATUS, RENEW, APPLY, CREATE):
                assert desk.may(who[role], method) == (method in methods), (role, method)
            assert not desk.may(who[role], TOKEN), "no operator of a tenant joins nodes"
        assert str(who[OperatorRole.ADMIN].spiffe_id) == "spiffe://a.test/tenant/acme/operator/admin"


@pytest.mark.parametrize("by_session", [False, True])
async def test_one_is_let_through_to_what_one_is_told_of(
    world: Any, monkeypatch: pytest.MonkeyPatch, by_session: bool
) -> None:
    connection = SimpleNamespace(session=object() if by_session else None)
    monkeypatch.setattr(under_test, "current_connection", lambda: connection)
    async with desk_of(world) as desk:
        peers = [await desk.create(tenant, role.name.lower(), role) for role in OperatorRole for tenant in ("", "acme")]
        for peer in (await desk.peer("local"), *peers):
            told = desk.operators.methods(peer.spiffe_id, by_session=by_session)
            assert told == [method for method in TABLE if desk.may(peer, method)], peer.spiffe_id
            assert STATUS in told
            assert (RENEW in told) != by_session
        with pytest.raises(Denied, match="operates this mesh no more"):
            desk.operators.methods(SpiffeId.for_operator("a.test", "eve"), by_session=by_session)


async def test_a_good_certificate_alone_lets_nobody_operate(world: Any) -> None:
    async with desk_of(world) as desk:
        assert desk.may(await desk.peer("local"), TOKEN)
        await desk.create("", "ann", OperatorRole.ADMIN)
        await desk.create("acme", "ann", OperatorRole.VIEWER)
        assert desk.may(await desk.peer("ann"), TOKEN)
        for stranger in (
            await desk.peer("eve"),
            await desk.peer("ann", "globex"),
            await desk.peer("local", "acme"),
            await desk.peer("local", domain="b.test"),
            await desk.peer("ann", domain="b.test"),
        ):
            assert not desk.may(stranger, STATUS), stranger.spiffe_id


async def test_who_is_removed_is_refused_at_once_and_who_is_changed_has_the_new_role(world: Any) -> None:
    async with desk_of(world) as desk:
        told = []
        desk.operators.listen(lambda: told.append(1))
        ann = await desk.create("", "ann", OperatorRole.ADMIN)
        await desk.create("", "ann", OperatorRole.VIEWER)
        assert not desk.may(ann, TOKEN)
        assert desk.may(ann, STATUS)
        await desk.operators.remove("", "ann", "someone")
        assert not desk.may(ann, STATUS)
        assert told
        with pytest.raises(UnknownOperator):
            await desk.operators.remove("", "ann", "someone")
        with pytest.raises(Denied):
            await desk.operators.renew(ann, make_csr(new_key()))


async def test_what_another_control_plane_says_counts_here(world: Any) -> None:
    async with desk_of(world) as here, desk_of(world) as there:
        ann = await there.create("", "ann", OperatorRole.EDITOR)
        async with asyncio.timeout(60):
            while not here.may(ann, APPLY):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        await here.operators.remove("", "ann", "someone")
        async with asyncio.timeout(60):
            while there.may(ann, STATUS):  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_each_change_and_certificate_is_an_event(world: Any) -> None:
    async with desk_of(world) as desk:
        ann = await desk.create("acme", "ann", OperatorRole.VIEWER)
        await desk.operators.renew(ann, make_csr(new_key()))
        await desk.operators.remove("acme", "ann", "someone")
    created = (await world.events("operator.create"))[0]
    assert (created["tenant"], created["name"], created["role"]) == ("acme", "ann", "VIEWER")
    assert created["serial"] == f"{ann.leaf.serial_number:x}"
    assert (await world.events("operator.renew"))[0]["serial"] != created["serial"]
    assert (await world.events("operator.remove"))[0]["by"] == "someone"


async def test_a_denied_identity_gets_no_certificate_and_a_bad_request_changes_nothing(world: Any) -> None:
    async with desk_of(world, denied=lambda identity: "denied" if identity.operator == "eve" else "") as desk:
        with pytest.raises(Denied):
            await desk.create("", "eve", OperatorRole.VIEWER)
        record = OperatorRecord("", "bob", OperatorRole.VIEWER, timedelta(hours=1), "x", world.now)
        for csr in (b"", b"noise", make_csr(new_key())[:-1]):
            with pytest.raises(InvalidCsr):
                await desk.operators.create(record, csr)
        assert desk.operators.listed() == []


async def test_there_is_a_most_of_them(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MAX_OPERATORS", 2)
    async with desk_of(world) as desk:
        for name in ("a", "b"):
            await desk.create("acme", name, OperatorRole.VIEWER)
        with pytest.raises(TooManyOperators):
            await desk.create("acme", "c", OperatorRole.VIEWER)
        await desk.create("acme", "b", OperatorRole.ADMIN)
        await desk.create("globex", "c", OperatorRole.VIEWER)


async def test_records_that_are_none_let_nobody_in(world: Any) -> None:
    good = OperatorRecord("", "ann", OperatorRole.ADMIN, timedelta(hours=1), "x", world.now).encode()
    bad = {
        key_of("", "a"): b"noise",
        key_of("", "b"): good.replace(b"ADMIN", b"ROOT"),
        key_of("", "c"): b"[]",
        OPERATORS + "mesh/x/y": good,
        OPERATORS + "tenant/acme": good,
        OPERATORS + "tenant//d": good,
        OPERATORS + "mesh/E": good,
        OPERATORS + "other/f": good,
    }
    await world.store.commit([Put(key, value) for key, value in bad.items()])
    async with desk_of(world) as desk:
        assert desk.operators.listed() == []
        assert not desk.may(await desk.peer("b"), STATUS)


@given(st.builds(lambda a, b: f"{a}/{b}", st.text(max_size=8), st.text(max_size=8)), st.binary(max_size=40))
def test_what_is_stored_is_read_or_is_refused(rest: str, value: bytes) -> None:
    with pytest.raises(ValueError, match="not an operator"):
        OperatorRecord.decode(OPERATORS + rest, value)


def test_what_changes_something_takes_an_editor_or_an_admin() -> None:
    for method in TABLE:
        name = method.rpartition("/")[2]
        if name in VIEWING:
            assert needed(method) is OperatorRole.VIEWER
        elif name in ("Apply", "Put", "Delete", "Remove", "Rollback"):
            assert needed(method) is OperatorRole.EDITOR
    unknown = {method for method in TABLE if needed(method) is OperatorRole.VIEWER}
    assert {method.rpartition("/")[2] for method in unknown} <= VIEWING
