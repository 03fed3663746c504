"""Logins of operators: how long one lasts, whom a configuration can let in, and how fast strangers may try."""

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.config.identity import OperatorLoginConfig
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.node_name import NameTemplate
from meshwarden.controlplane.identity.operator_login import FIELDS, PACE, Grant, OperatorLogin
from meshwarden.controlplane.identity.operators import OPERATORS, OperatorRecord, OperatorRole, Operators
from meshwarden.controlplane.identity.rate import Limited
from meshwarden.controlplane.identity.vault_token import VaultTokens
from meshwarden.controlplane.store.port import Put

FOUND = {
    "path": "auth/userpass/login/ann",
    "entity_id": "e1",
    "policies": ["default", "view"],
    "identity_policies": ["edit"],
    "meta": {"username": "root"},
    "accessor": "acc1",
}
ENTITY: dict[str, Any] = {"name": "Ann", "aliases": [{"mount_path": "auth/userpass/", "name": "ann"}]}
ALIAS = "{alias_name}"
STATUS = "/meshwarden.v1.AdminService/GetStatus"
VIEW = Grant(OperatorRole.VIEWER, "", policy="view")
EDIT = Grant(OperatorRole.EDITOR, "", policy="edit")
ACME = Grant(OperatorRole.ADMIN, "acme", policy="edit")
ANN = Grant(OperatorRole.ADMIN, "", entity="Ann")


class FakeVault:
    def __init__(self, found: Any, entity: Any) -> None:
        self.found, self.entity = found, entity

    async def call(self, path: str, work: Any, capability: str = "update") -> Any:
        return self.found if path == "auth/token/lookup" else {"data": self.entity}

    async def tend(self) -> timedelta:
        return timedelta(hours=1)


class Desk:
    def __init__(self, world: Any, operators: Operators, login: OperatorLogin) -> None:
        self.world, self.operators, self.login = world, operators, login

    async def enter(self, tenant: str = "", address: str = "192.0.2.1:1") -> OperatorRecord:
        record, _ = await self.login.log_in("s.token-of-ann", make_csr(new_key()), tenant, address)
        return record


@asynccontextmanager
async def desk_of(world: Any, *grants: Grant, found: Any = FOUND, entity: Any = ENTITY, name: str = ALIAS) -> Any:
    operators = Operators(world.authority, world.store, world.audit, world.clock, trust_domain="a.test")
    login = OperatorLogin(
        VaultTokens(FakeVault(found, entity), "operators"),
        operators,
        world.audit,
        world.clock,
        grants=grants,
        mounts=("userpass",),
        name=NameTemplate(name, FIELDS),
        ttl=timedelta(minutes=30),
    )
    async with anyio.create_task_group() as group:
        await group.start(operators.run)
        yield Desk(world, operators, login)
        group.cancel_scope.cancel()


async def test_the_most_that_one_has_of_what_one_asks_for(world: Any) -> None:
    async with desk_of(world, VIEW, EDIT, ACME) as desk:
        assert (await desk.enter()).role is OperatorRole.EDITOR
        acme = await desk.enter("acme")
        assert (acme.role, acme.tenant, acme.name) == (OperatorRole.ADMIN, "acme", "vault-ann")
        with pytest.raises(Denied, match="of tenant other"):
            await desk.enter("other")
    async with desk_of(world, ANN) as desk:
        assert (await desk.enter()).role is OperatorRole.ADMIN


async def test_who_has_logged_in_operates_until_the_login_ends(world: Any) -> None:
    async with desk_of(world, VIEW) as desk:
        _, chain = await desk.login.log_in("s.token-of-ann", make_csr(new_key()), "", "192.0.2.1:1")
        bundle = await world.authority.bundle()
        ders = [one.public_bytes(Encoding.DER) for one in chain]
        peer = verify_chain(ders, {"a.test": bundle}, world.now)
        desk.operators.admit(peer, STATUS)
        with pytest.raises(Denied, match="logs in again"):
            await desk.operators.renew(peer, make_csr(new_key()))
        world.pass_time(30 * 60)
        with pytest.raises(Denied, match="the login has ended"):
            desk.operators.admit(peer, STATUS)


async def test_a_login_ends_and_is_deleted_by_another(world: Any) -> None:
    async with desk_of(world, VIEW) as desk:
        record = await desk.enter()
        assert record.until is not None
        assert record.until - world.now <= timedelta(minutes=30)
        assert OperatorRecord.decode(record.key, record.encode()) == record
        old = OperatorRecord("", "vault-bob", OperatorRole.ADMIN, timedelta(minutes=30), "x", world.now, world.now)
        world.pass_time(1)
        await world.store.commit([Put(old.key, old.encode())])
        while old.key not in desk.operators._followed.items:  # noqa: ASYNC110 - a store's watch tells nobody here
            await anyio.sleep(0.01)
        await desk.enter()
        keys = [item.key for item in (await world.store.range(OPERATORS)).records]
        assert keys == [record.key]


@pytest.mark.parametrize(
    ("found", "entity", "name", "reason"),
    [
        ({**FOUND, "path": "auth/userpass2/login/ann"}, ENTITY, "{alias_name}", "operators log in at"),
        ({**FOUND, "path": "auth/token/create"}, ENTITY, "{alias_name}", "operators log in at"),
        ({**FOUND, "path": None}, ENTITY, "{alias_name}", "operators log in at"),
        ({**FOUND, "entity_id": ""}, ENTITY, "{alias_name}", "has no entity"),
        ({**FOUND, "policies": None, "identity_policies": None}, ENTITY, "{alias_name}", "an operator of the mesh"),
        ({**FOUND, "identity_policies": ["editor"], "policies": ["VIEW"]}, ENTITY, "{alias_name}", "an operator of"),
        (FOUND, {**ENTITY, "disabled": True}, "{alias_name}", "disabled"),
        (FOUND, {"name": "Ann"}, "{alias_name}", "names no operator"),
        (FOUND, ENTITY, "{entity_name}", "names no operator"),
        (FOUND, {**ENTITY, "name": "a" * 60}, "{entity_name}", "longer than 63"),
        (FOUND, {**ENTITY, "name": "../root"}, "{entity_name}", "names no operator"),
    ],
)
async def test_who_is_refused(world: Any, found: Any, entity: Any, name: str, reason: str) -> None:
    async with desk_of(world, VIEW, EDIT, found=found, entity=entity, name=name) as desk:
        with pytest.raises(Denied, match=reason):
            await desk.enter()
    assert not (await world.store.range(OPERATORS)).records
    (event,) = await world.events("operator.login_denied")
    assert "s.token-of-ann" not in str(event)


async def test_strangers_try_only_so_fast(world: Any) -> None:
    async with desk_of(world, found=None) as desk:
        for _ in range(PACE.burst):
            with pytest.raises(Denied):
                await desk.enter()
        with pytest.raises(Limited):
            await desk.enter()
        with pytest.raises(Denied):
            await desk.enter(address="192.0.2.2:1")


GOOD: dict[str, Any] = {"mounts": ["userpass"], "grants": [{"policy": "mesh", "role": "viewer"}]}


@pytest.mark.parametrize(
    "changed",
    [
        {"mounts": []},
        {"mounts": ["../x"]},
        {"grants": []},
        {"grants": [{"role": "admin"}]},
        {"grants": [{"policy": "a", "entity": "b", "role": "admin"}]},
        {"grants": [{"policy": "default", "role": "admin"}]},
        {"grants": [{"policy": "root", "role": "admin"}]},
        {"grants": [{"policy": "mesh", "role": "owner"}]},
        {"grants": [{"policy": "mesh", "role": "admin", "tenant": "../x"}]},
        {"ttl_s": 3601},
        {"ttl_s": 0},
        {"name": "ann"},
        {"name": "{metadata.username}"},
        {"unknown": 1},
    ],
)
def test_a_configuration_that_lets_in_whom_it_must_not(changed: dict[str, Any]) -> None:
    OperatorLoginConfig.model_validate(GOOD)
    with pytest.raises(ValidationError):
        OperatorLoginConfig.model_validate({**GOOD, **changed})
