"""Denies in the store: who may change which, how they are followed, and that nothing is issued meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import grpc
import pytest
from cryptography import x509

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.csr import make_csr
from meshwarden.certs.deny import DenyList, InvalidDeny
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.identity import deny as deny_module
from meshwarden.controlplane.identity import deny_watch as deny_watch_module
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.crl import Crls
from meshwarden.controlplane.identity.deny import DENIES, DeniedByMesh, Denies, DenyRecord, NotDenied
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.record import RecordError
from meshwarden.controlplane.store.port import Put, TooLarge
from meshwarden.v1.node_service_pb2 import AttestRequest, WorkloadCsr

WEB = "spiffe://a.test/tenant/acme/service/web"
ROOT, ANNA, PAUL = (
    f"spiffe://a.test/{path}" for path in ("operator/r", "tenant/acme/operator/a", "tenant/b/operator/p")
)


@pytest.fixture
def denies(world: Any) -> Denies:
    return Denies(world.store, world.audit, world.clock)


@asynccontextmanager
async def following(world: Any) -> AsyncIterator[DenyWatch]:
    deny_watch = DenyWatch(world.store, world.clock)
    async with anyio.create_task_group() as group:
        await group.start(deny_watch.run)
        yield deny_watch
        group.cancel_scope.cancel()


async def test_a_deny_is_followed_and_taken_back(world: Any, denies: Denies) -> None:
    first = await denies.deny([WEB], {"1F": WEB, "2f": ""}, reason="leaked", by=ROOT)
    async with following(world) as deny_watch:
        assert {(deny.spiffe_id, deny.serial) for deny in deny_watch.present} == {(WEB, ""), (WEB, "1f"), ("", "2f")}
        assert deny_watch.present.revision >= first
        heard: list[DenyList] = []
        deny_watch.listen(heard.append)
        revision = await denies.allow([(WEB, ""), ("", "2F")], "rebuilt", ROOT)
        await deny_watch.wait_revision(revision)
        assert [(deny.spiffe_id, deny.serial) for deny in deny_watch.present] == [(WEB, "1f")]
        assert heard == [deny_watch.present]
        (record,) = deny_watch.records()
        assert (record.reason, record.by, record.time) == ("leaked", ROOT, world.now)
    assert [event["by"] for event in await world.events("identity.deny")] == [ROOT] * 3
    assert [event["reason"] for event in await world.events("identity.allow")] == ["rebuilt"] * 2


async def test_a_deny_ends_with_the_last_certificate_that_it_names(
    world: Any, denies: Denies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deny_watch_module, "TICK", timedelta(milliseconds=10))
    await denies.deny([WEB], reason="x")
    async with following(world) as deny_watch:
        (deny,) = deny_watch.present
        assert deny.not_after - world.now >= timedelta(days=1)
        world.now = deny.not_after + timedelta(seconds=1)
        empty = anyio.Event()
        deny_watch.listen(lambda present: None if present else empty.set())
        async with asyncio.timeout(60):
            await empty.wait()
    assert not (await world.store.range(DENIES)).records


async def test_an_operator_of_a_tenant_leaves_alone_what_others_have_denied(denies: Denies) -> None:
    for author in (ROOT, PAUL, "the control plane"):
        await denies.deny([WEB], reason="x", by=author)
        with pytest.raises(DeniedByMesh):
            await denies.allow([(WEB, "")], "", ANNA)
        with pytest.raises(DeniedByMesh):
            await denies.deny([WEB], reason="y", by=ANNA)
        await denies.allow([(WEB, "")], "", ROOT)
    await denies.deny([WEB], reason="x", by=ANNA)
    await denies.allow([(WEB, "")], "", ANNA)


async def test_all_are_denied_or_none(world: Any, denies: Denies) -> None:
    with pytest.raises(InvalidDeny):
        await denies.deny([WEB, "spiffe://a.test"], reason="x")
    with pytest.raises(InvalidDeny, match="control plane's own"):
        await denies.deny([WEB, "spiffe://a.test/region/eu/controlplane"], reason="x")
    with pytest.raises(InvalidDeny, match="ended"):
        await denies.deny([WEB], until=world.now, reason="x")
    with pytest.raises(TooLarge):
        await denies.deny([f"{WEB}{number}" for number in range(111)], reason="x")
    with pytest.raises(NotDenied, match=WEB):
        await denies.allow([(WEB, "")], "", ROOT)
    assert not (await world.store.range(DENIES)).records


async def test_the_list_is_bounded_and_no_tenant_fills_it(denies: Denies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deny_module, "MAX_OF_TENANT", 2)
    monkeypatch.setattr(deny_module, "MAX_DENIES", 4)
    await denies.deny([WEB, WEB + "1"], reason="x", by=ANNA)
    await denies.deny([WEB], reason="again", by=ANNA)  # it is there already
    with pytest.raises(InvalidDeny, match="tenant acme"):
        await denies.deny([WEB + "2"], reason="x", by=ANNA)
    await denies.deny([WEB + "2"], reason="x", by=PAUL)
    await denies.deny([WEB + "3"], reason="x", by=ROOT)
    with pytest.raises(InvalidDeny, match="at most 4"):
        await denies.deny([WEB + "4"], reason="x", by=ROOT)


async def test_a_record_that_cannot_be_read_hides_no_other_and_allows_nobody(world: Any, denies: Denies) -> None:
    await denies.deny([WEB, WEB + "1"], reason="x")
    async with following(world) as deny_watch:
        first, second = (await world.store.range(DENIES)).records
        revision = await world.store.commit([Put(first.key, b"{}"), Put(DENIES + "id/0", second.value)])
        await deny_watch.wait_revision(revision)
        assert len(deny_watch.present) == 2
    with pytest.raises(RecordError):  # one that stands under another's key is none
        DenyRecord.decode(DENIES + "id/0", second.value)


async def test_nothing_is_issued_to_who_is_denied(world: Any) -> None:
    await world.entry("web", "n1")
    said = {"": ""}
    nodes = world.identity(denied=lambda identity: said.get(str(identity), ""))
    token = await world.tokens.create("n1")
    said["spiffe://a.test/region/eu/node/n1"] = "this identity was revoked"
    with pytest.raises(Denied, match="revoked"):
        await nodes.attest(AttestRequest(join_token=token, csr=make_csr(new_key())), "127.0.0.1", "1")
    said.clear()
    await nodes.attest(AttestRequest(join_token=token, csr=make_csr(new_key())), "127.0.0.1", "1")
    said[WEB] = "this identity was revoked"
    peer = SpiffeId.parse("spiffe://a.test/region/eu/node/n1")
    request = WorkloadCsr(tenant="acme", entry="web", csr=make_csr(new_key()))
    (result,) = (await nodes.sign_workloads(peer, [request])).results
    assert (result.code, "revoked" in result.message) == (grpc.StatusCode.PERMISSION_DENIED.value[0], True)
    said.clear()
    (result,) = (await nodes.sign_workloads(peer, [request])).results
    assert result.chain


async def test_a_revocation_list_is_signed_anew_at_each_change_and_before_it_is_old(world: Any, denies: Denies) -> None:
    signed: list[tuple[dict[int, Any], int]] = []

    class Signer(MemoryAuthority):
        async def sign_crl(self, revoked: Any, number: int, now: Any) -> bytes:
            signed.append((dict(revoked), number))
            return await super().sign_crl(revoked, number, now)

    async with following(world) as deny_watch:
        crls = Crls(Signer("a.test", world.clock), deny_watch, world.clock)
        first = await crls.get()
        assert not list(x509.load_der_x509_crl(first))
        # However often it is asked for, it is signed once.
        assert await crls.get() is first
        await deny_watch.wait_revision(await denies.deny([WEB], {"1F": WEB, "2f": ""}, reason="x"))
        assert {entry.serial_number for entry in x509.load_der_x509_crl(await crls.get())} == {0x1F, 0x2F}
        world.pass_time(299)
        await crls.get()
        assert len(signed) == 2
        world.pass_time(2)
        crl = x509.load_der_x509_crl(await crls.get())
        assert crl.next_update_utc is not None
        assert (crl.next_update_utc - world.now).total_seconds() > 300
        world.pass_time(-100)  # a clock that was set back
        await crls.get()
    assert [number for _, number in signed] == sorted({number for _, number in signed})
    assert len(signed) == 4
