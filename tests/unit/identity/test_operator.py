import random
import stat
from datetime import timedelta
from typing import Any

import pytest

from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.certs.svid import X509Svid
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.identity.operator import OperatorCredential


async def issue(world: Any, name: str = "ann", **more: Any) -> OperatorCredential:
    credential = OperatorCredential(
        world.authority,
        "a.test",
        name,
        world.directory / "operator",
        clock=world.clock,
        rng=random.Random(1),
        audit=world.audit,
        **more,
    )
    await credential.issue()
    return credential


async def test_is_published_and_audited(world: Any) -> None:
    await issue(world)
    place = world.directory / "operator"
    svid = X509Svid.load((place / "tls.crt").read_bytes(), (place / "tls.key").read_bytes())
    assert svid.spiffe_id == SpiffeId.for_operator("a.test", "ann")
    assert svid.not_after - svid.not_before == timedelta(hours=1)
    bundle = await world.authority.bundle()
    assert (place / "ca.crt").read_bytes() == bundle.pem()
    verify_chain(svid.chain_der(), {"a.test": bundle}, world.now)
    for name in ("tls.crt", "tls.key", "ca.crt"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    (event,) = await world.events("operator.issue")
    assert event["serial"] == svid.serial


async def test_renews_at_half_life(world: Any) -> None:
    credential = await issue(world)
    minutes = (credential._due - world.now) / timedelta(minutes=1)
    assert 25 <= minutes <= 33
    first = (world.directory / "operator" / "tls.crt").read_bytes()
    await credential.issue()
    assert (world.directory / "operator" / "tls.crt").read_bytes() != first


async def test_of_one_tenant(world: Any) -> None:
    await issue(world, tenant="acme")
    assert (await world.events("operator.issue"))[0]["spiffe_id"] == "spiffe://a.test/tenant/acme/operator/ann"


async def test_names_are_checked(world: Any) -> None:
    with pytest.raises(InvalidSpiffeId):
        await issue(world, "ann/../root")
