"""The keys of JWT-SVIDs in the store: they outlast a restart, are shared, moved on by operators, and leak to nobody."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from meshwarden.certs import jose
from meshwarden.certs.authority.port import AuthorityLocked
from meshwarden.certs.authority.slot import RootRefused, SlotState
from meshwarden.certs.jwt_svid import TTL
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.jwt_key import ACTIVATE_AT, HOLD, KEYS, LIFE, PREPARE_AT, SPREAD, JwtKeyRecord
from meshwarden.controlplane.identity.jwt_seal import SEAL
from meshwarden.controlplane.store.port import Put

WEB = SpiffeId.workload("a.test", "acme", "web")
PASSPHRASE = "correct horse battery staple"


def authority(world: Any, passphrase: str | None = PASSPHRASE) -> JwtAuthority:
    async def read() -> SecretStr:
        assert passphrase is not None
        return SecretStr(passphrase)

    given = read if passphrase is not None else None
    return JwtAuthority(world.store, world.audit, world.clock, trust_domain="a.test", passphrase=given)


@pytest.fixture
async def jwt(world: Any) -> JwtAuthority:
    made = authority(world)
    await made.open()
    return made


def signer(world: Any, jwt: JwtAuthority) -> str:
    """Which key signs."""
    token = jwt.sign(WEB, ("orders",), world.now).token
    return str(jose.read_object(jose.decode(token.partition(".")[0]))["kid"])


async def prepared(jwt: JwtAuthority) -> str:
    await jwt.prepare("ann")
    return next(record.kid for record in jwt.records() if record.state is SlotState.PREPARED)


async def test_a_restart_signs_by_the_same_key_however_long_it_took(world: Any, jwt: JwtAuthority) -> None:
    kid = signer(world, jwt)
    for seconds in (0.0, HOLD.total_seconds() * 3):
        world.pass_time(seconds)
        again = authority(world)
        await again.open()
        assert (signer(world, again), set(again.bundle().keys)) == (kid, {kid})


async def test_two_that_begin_at_once_have_one_key(world: Any) -> None:
    both = [authority(world), authority(world)]
    await asyncio.gather(*(one.open() for one in both))
    assert len({signer(world, one) for one in both}) == 1
    assert len((await world.store.range(KEYS)).records) == 1


async def test_two_that_tend_at_once_prepare_one(world: Any, jwt: JwtAuthority) -> None:
    other = authority(world)
    await other.open()
    world.pass_time(PREPARE_AT.total_seconds())
    await asyncio.gather(jwt.tend(), other.tend(), return_exceptions=True)
    await jwt.tend()
    assert [record.state for record in jwt.records()] == [SlotState.ACTIVE, SlotState.PREPARED]


async def test_another_control_plane_signs_by_what_one_has_activated(world: Any, jwt: JwtAuthority) -> None:
    other = authority(world)
    await other.open()
    first, second = signer(world, jwt), await prepared(jwt)
    world.pass_time(SPREAD.total_seconds())
    await jwt.activate(second, "ann")
    await other.tend()
    assert signer(world, jwt) == signer(world, other) == second
    assert {record.kid: record.state for record in other.records()} == {first: SlotState.OLD, second: SlotState.ACTIVE}


async def test_no_private_key_is_readable_and_an_old_one_is_gone(world: Any, jwt: JwtAuthority) -> None:
    assert jwt._signing is not None
    first, key = jwt._signing
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    number = key.private_numbers().private_value.to_bytes(32, "big")
    second = await prepared(jwt)
    for record in (await world.store.range("")).records:
        for secret in (der, number, number.hex().encode(), PASSPHRASE.encode()):
            assert secret not in record.value
    await jwt.activate(second, "ann", force=True)
    stored = {record.key: json.loads(record.value) for record in (await world.store.range(KEYS)).records}
    assert stored[KEYS + first]["sealed"] == ""
    assert stored[KEYS + second]["sealed"]
    assert "_key" not in repr(jwt._lock.seal)


@pytest.mark.parametrize("passphrase", ["", PASSPHRASE + " "])
async def test_another_passphrase_opens_nothing(world: Any, jwt: JwtAuthority, passphrase: str) -> None:
    with pytest.raises(AuthorityLocked, match="jwt_passphrase"):
        await authority(world, passphrase).open()
    assert len((await world.store.range(KEYS)).records) == 1


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        b'{"kdf":{"name":"scrypt","n":1073741824,"salt":"00"},"check":""}',
        b'{"kdf":{"name":"scrypt","n":true,"salt":"00"},"check":""}',
        b'{"kdf":{"name":"scrypt","n":65536,"salt":"zz"},"check":""}',
        b'{"kdf":{"name":"scrypt","n":2,"salt":"00"},"check":7}',
    ],
)
async def test_a_seal_that_is_none_opens_nothing(world: Any, value: bytes) -> None:
    await world.store.commit([Put(SEAL, value)])
    with pytest.raises(AuthorityLocked):
        await authority(world).open()


async def test_a_key_under_another_ones_id_or_changed_signs_nothing(world: Any, jwt: JwtAuthority) -> None:
    """Whoever writes to the store but doesn't know the passphrase makes nothing sign that we have not made."""
    first, second = signer(world, jwt), await prepared(jwt)
    stored = {record.key: json.loads(record.value) for record in (await world.store.range(KEYS)).records}
    swapped = {**stored[KEYS + first], "sealed": stored[KEYS + second]["sealed"]}
    broken = {**stored[KEYS + second], "sealed": "AAAA" + stored[KEYS + second]["sealed"][4:]}
    await world.store.commit(
        [Put(KEYS + first, json.dumps(swapped).encode()), Put(KEYS + second, json.dumps(broken).encode())]
    )
    again = authority(world)
    await again.open()
    assert signer(world, again) not in (first, second)


async def test_a_key_waits_for_nodes_that_do_not_know_it(world: Any, jwt: JwtAuthority) -> None:
    first, lagging = signer(world, jwt), {"eu-1": "has not acknowledged it yet"}
    world.pass_time(PREPARE_AT.total_seconds())
    await jwt.tend()
    second = next(record.kid for record in jwt.records() if record.state is SlotState.PREPARED)
    jwt.missing = lambda kid: lagging if kid == second else {}

    async def pass_time(time: timedelta) -> None:
        # Nobody has extended it meanwhile, so it is published anew.
        for part in (time, SPREAD):
            world.pass_time(part.total_seconds())
            await jwt.tend()

    await pass_time(ACTIVATE_AT - PREPARE_AT)
    with pytest.raises(RootRefused, match="eu-1 has not acknowledged it yet"):
        await jwt.activate(second, "ann")
    assert signer(world, jwt) == first
    # Not for ever: a key's week ends, whoever has not heard of the next.
    await pass_time(LIFE - ACTIVATE_AT)
    assert signer(world, jwt) == second


async def test_a_key_that_others_may_not_have_read_signs_only_by_force(world: Any, jwt: JwtAuthority) -> None:
    first, second = signer(world, jwt), await prepared(jwt)
    with pytest.raises(RootRefused, match="wait until"):
        await jwt.activate(second, "ann")
    assert signer(world, jwt) == first
    world.pass_time(SPREAD.total_seconds())
    await jwt.activate(second[:8], "ann")
    assert signer(world, jwt) == second
    (event,) = await world.events("jwt_key.activate")
    assert (event["kid"], event["by"], event["forced"]) == (second, "ann", False)


async def test_what_is_refused(world: Any, jwt: JwtAuthority) -> None:
    first = signer(world, jwt)
    for act in (jwt.taint, jwt.revoke):
        with pytest.raises(RootRefused, match="without another"):
            await act(first, "ann")
    with pytest.raises(RootRefused, match="only one that is prepared"):
        await jwt.activate(first, "ann", force=True)
    for nothing in ("", first[:5], "nothing", first + "x"):
        with pytest.raises(RootRefused, match=r"there is none|means several"):
            await jwt.revoke(nothing, "ann")
    await jwt.prepare("ann")
    with pytest.raises(RootRefused, match="prepared already"):
        await jwt.prepare("ann")
    assert signer(world, jwt) == first


async def test_a_tainted_key_is_told_and_ends_with_its_last_token(world: Any, jwt: JwtAuthority) -> None:
    told: list[frozenset[str]] = []
    jwt.listen(lambda: told.append(jwt.tainted))
    first, second = signer(world, jwt), await prepared(jwt)
    await jwt.activate(second, "ann", force=True)
    await jwt.taint(first, "ann", "it has leaked")
    assert told[-1] == {first}
    assert set(jwt.bundle().keys) == {first, second}
    world.pass_time(TTL.total_seconds())
    await jwt.tend()
    assert first in jwt.bundle().keys
    world.pass_time(TTL.total_seconds())
    await jwt.tend()
    assert (set(jwt.bundle().keys), jwt.tainted) == ({second}, frozenset())


async def test_a_revoked_key_proves_nothing_at_once(world: Any, jwt: JwtAuthority) -> None:
    other = authority(world)
    await other.open()
    first, second = signer(world, jwt), await prepared(jwt)
    await jwt.activate(second, "ann", force=True)
    await jwt.revoke(first, "ann")
    await other.tend()
    assert set(jwt.bundle().keys) == set(other.bundle().keys) == {second}
    assert [event["kid"] for event in await world.events("jwt_key.revoke")] == [first]


async def test_one_in_anothers_memory_is_shown_and_left_to_it(world: Any) -> None:
    one, other = authority(world, None), authority(world, None)
    await one.open()
    await other.open()
    theirs = await prepared(other)
    await one.tend()
    assert one.slots()[1] is None
    with pytest.raises(RootRefused, match="another control plane's memory"):
        await one.activate(theirs, "ann", force=True)
    await one.taint(theirs, "ann")
    await other.tend()
    assert other.slots()[1] is None


async def test_a_clock_that_was_set_back_keeps_no_record_for_ever(world: Any, jwt: JwtAuthority) -> None:
    world.pass_time(-30 * 86_400)
    await jwt.tend()
    (record,) = jwt.records()
    assert record.end == world.now + HOLD


async def test_a_record_of_before_keys_had_states_is_good_until_it_ends(world: Any, jwt: JwtAuthority) -> None:
    (record,) = jwt.records()
    words = json.loads(record.encode())
    old = {"v": 1, "jwk": words["jwk"], "end": (world.now + timedelta(minutes=5)).isoformat()}
    read = JwtKeyRecord.decode(KEYS + "old", json.dumps(old).encode())
    assert (read.state, read.sealed, read.end) == (SlotState.OLD, "", world.now + timedelta(minutes=5))


async def test_it_rotates_by_itself(world: Any, jwt: JwtAuthority) -> None:
    first, begin = signer(world, jwt), world.now
    while world.now < begin + ACTIVATE_AT:
        assert signer(world, jwt) == first
        world.pass_time(1800)
        await jwt.tend()
    assert signer(world, jwt) != first
