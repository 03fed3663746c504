from typing import Any

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.identity.issuing import recorder
from meshwarden.controlplane.identity.serving import LIFE


async def issuer_of(world: Any, audit: Any) -> Any:
    authority = MemoryAuthority("a.test", world.clock, on_issued=recorder(audit))
    template = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), LIFE)
    return (await authority.sign(template, new_key().public_key(), world.now))[1]


async def test_an_issuing_certificate_is_an_event(world: Any) -> None:
    issuing = await issuer_of(world, world.audit)
    (event,) = await world.events("authority.issue")
    assert event["serial"] == f"{issuing.serial_number:x}"
    assert event["not_after"] == issuing.not_valid_after_utc.isoformat()


async def test_a_log_that_fails_keeps_nobody_from_serving(world: Any) -> None:
    world.audit.close()
    assert await issuer_of(world, world.audit)
