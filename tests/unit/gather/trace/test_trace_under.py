"""Which traces ran under a revision: whose, of which time, how many, and what hostile spans say of themselves."""

from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.resource import Checked
from meshwarden.controlplane.gather.tally import Tally
from meshwarden.controlplane.gather.trace import under as trace_under
from meshwarden.controlplane.gather.trace.store import TraceStore

CHANGE = (99).to_bytes(16, "big")


class World:
    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        tally = Tally()
        durable.add(tally)
        self.store = TraceStore(durable, tally, utc_now)

    async def put(self, tenant: str, number: int, start_ns: int, *revisions: AnyValue) -> None:
        """A trace of one span, in a block of its own."""
        said = [KeyValue(key="mesh.revision", value=value) for value in revisions]
        span = Span(trace_id=number.to_bytes(16, "big"), span_id=b"s" * 8, name=f"call {number}", attributes=said)
        span.start_time_unix_nano = start_ns
        message = ResourceSpans(scope_spans=[ScopeSpans(spans=[span])])
        for key, value in {"mesh.tenant": tenant, "mesh.service": "web"}.items():
            message.resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
        self.store.add(Checked("span", tenant, message, 1, message.SerializeToString()))
        await self.durable.flush()

    async def under(self, revision: int, since_ns: int = 0, tenant: str = "") -> list[str]:
        found = await self.store.under(revision, since_ns, CHANGE, lambda name: tenant in ("", name))
        return [item.name for item in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    durable = Durable(tmp_path / "gather.sqlite")
    return World(durable)


SEVEN, EIGHT = AnyValue(int_value=7), AnyValue(int_value=8)


async def test_calls_lead_to_what_they_ran_under_and_nothing_else_does(world: World) -> None:
    await world.put("acme", 1, 100, SEVEN)
    await world.put("acme", 2, 200, EIGHT)
    await world.put("platform", 3, 300, SEVEN)
    await world.put("", 4, 300, SEVEN)  # what the mesh did
    await world.put("acme", 99, 300, SEVEN)
    for number, odd in enumerate((AnyValue(string_value="7"), AnyValue(bytes_value=b"\x07"), AnyValue()), start=5):
        await world.put("acme", number, 300, odd)
    assert await world.under(7) == ["call 1", "call 3"]
    assert await world.under(7, since_ns=200) == ["call 3"]
    assert await world.under(7, tenant="acme") == ["call 1"]
    for revision in (0, 9, 2**63, 2**64 - 1):
        assert await world.under(revision) == []
    world.durable.close()


async def test_what_is_read_and_told_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_under, "MAX_BLOCKS", 12)
    for number in range(1, 12):
        await world.put("acme", number, 100, SEVEN)
    for number in range(12, 15):
        await world.put("acme", number, 100, EIGHT)
    assert await world.under(7) == [f"call {number}" for number in range(1, trace_under.MAX_TRACES + 1)]
    assert await world.under(8) == ["call 12"], "the others lie beyond"
    world.durable.close()
