from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.identity.issuing import recorder
from meshwarden.controlplane.identity.serving import LIFE
from meshwarden.sdk.tracing.own_span import Kept, own_provider


async def issuer_of(world: Any, audit: Any, spans: Kept) -> Any:
    provider = own_provider("us", spans)
    authority = MemoryAuthority("a.test", world.clock, on_issued=recorder(audit, provider))
    template = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), LIFE)
    return (await authority.sign(template, new_key().public_key(), world.now))[1]


async def test_an_issuing_certificate_is_an_event(world: Any) -> None:
    issuing = await issuer_of(world, world.audit, Kept())
    (event,) = await world.events("authority.issue")
    assert event["serial"] == f"{issuing.serial_number:x}"
    assert event["not_after"] == issuing.not_valid_after_utc.isoformat()


async def test_a_log_that_fails_keeps_nobody_from_serving(world: Any) -> None:
    world.audit.close()
    assert await issuer_of(world, world.audit, Kept())


async def test_an_issuing_certificate_is_a_trace_also_before_anybody_takes_spans(world: Any) -> None:
    spans, sent = Kept(), list[tuple[bytes, int]]()
    issuing = await issuer_of(world, world.audit, spans)
    spans.pass_to(lambda body, count: sent.append((body, count)))
    ((body, count),) = sent
    (span,) = ResourceSpans.FromString(body).scope_spans[0].spans
    said = {pair.key: pair.value for pair in span.attributes}
    assert (span.name, count) == ("authority", 1)
    assert said["mesh.serial"].string_value == f"{issuing.serial_number:x}"
    assert said["mesh.changes"].array_value.values[0].string_value.startswith("ISSUED issuing certificate ")
