"""The way up: batches are repeated until they are taken, one tenant's trouble is not another's, nothing is silent."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from meshwarden.agents.telemetry.account import Drops
from meshwarden.agents.telemetry.chain import BatchLimits
from meshwarden.agents.telemetry.outbox import Outbox
from meshwarden.agents.telemetry.segment import Items
from meshwarden.agents.telemetry.spool import Spool
from meshwarden.controlplane.api.report import parts
from meshwarden.v1 import report_pb2 as pb


class Upstream:
    """Takes batches, or fails as told."""

    def __init__(self) -> None:
        self.taken: list[pb.ExportRequest] = []
        self.failures: list[BaseException] = []
        self.refused: dict[bytes, BaseException] = {}
        self.tried = 0
        self.mark = 0

    async def export(self, batch: bytes, timeout_s: float) -> pb.ExportResponse:
        self.tried += 1
        if self.failures:
            raise self.failures.pop(0)
        request = pb.ExportRequest.FromString(batch)
        for part in list(parts(request)):
            request.MergeFrom(part)
        for body in request.resource_spans:
            if body in self.refused:
                raise self.refused[body]
        self.taken.append(request)
        return pb.ExportResponse(sequence=self.mark or request.sequence)

    @property
    def bodies(self) -> list[bytes]:
        return [body for request in self.taken for body in request.resource_spans]

    @property
    def drops(self) -> Counter[tuple[str, str, str, str]]:
        found: Counter[tuple[str, str, str, str]] = Counter()
        for request in self.taken:
            for drop in request.drops:
                found[drop.stage, drop.signal, drop.reason, drop.tenant] += drop.count
        return found


def refusal(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    found = Spool(tmp_path / "spool", lambda: b"r" * 16)
    yield found
    found.close()


def put(spool: Spool, tenant: str, body: bytes, spans: int = 1) -> None:
    spool.put(tenant, pb.ExportRequest(resource_spans=[body]).SerializeToString(), Items(span=spans))


async def test_a_batch_is_repeated_with_its_number_until_it_is_taken(spool: Spool) -> None:
    upstream = Upstream()
    upstream.failures = [OSError("away"), refusal(grpc.StatusCode.UNAVAILABLE)]
    box = Outbox(spool, upstream.export)
    put(spool, "acme", b"one")
    assert not await box.flush()
    put(spool, "acme", b"two")
    assert not await box.flush()
    assert await box.flush()
    first, second = upstream.taken
    assert ([*first.resource_spans], [*second.resource_spans]) == ([b"one"], [b"two"])
    assert first.run_id == second.run_id == (b"r" * 16).hex()
    assert 0 < first.sequence < second.sequence


async def test_a_batch_that_is_refused_for_good_holds_up_nobody(spool: Spool) -> None:
    upstream = Upstream()
    upstream.refused = {b"bad": refusal(grpc.StatusCode.INVALID_ARGUMENT)}
    box = Outbox(spool, upstream.export)
    put(spool, "acme", b"bad", spans=3)
    spool.drop(Drops({("agent.receive", "span", "malformed", "acme"): 5}))
    put(spool, "globex", b"good")
    assert await box.flush()
    assert upstream.bodies == [b"good"]
    assert upstream.drops == {
        ("agent.spool", "span", "refused", "acme"): 3,
        ("agent.receive", "span", "malformed", "acme"): 5,
    }


async def test_a_tenant_that_is_put_off_holds_up_nobody(spool: Spool) -> None:
    upstream = Upstream()
    upstream.refused = {b"later": refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)}
    box = Outbox(spool, upstream.export)
    put(spool, "acme", b"later")
    put(spool, "globex", b"good")
    assert not await box.flush()
    upstream.refused = {}
    assert await box.flush()
    assert upstream.bodies == [b"good", b"later"]
    assert not upstream.drops


@pytest.mark.parametrize("fault", ["unreadable", "full"])
async def test_a_fault_of_one_tenants_files_holds_up_nobody_else(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    upstream = Upstream()
    for tenant in ("acme", "globex"):
        put(spool, tenant, tenant.encode())
    (segment,) = (tmp_path / "spool" / "acme").glob("*.seg")
    if fault == "unreadable":
        segment.rename(segment.with_suffix(".gone"))
    else:  # what is refused can't be given up, for that takes a record

        def full(*_: object) -> None:
            raise OSError("No space left on device")

        upstream.refused[b"acme"] = refusal(grpc.StatusCode.INVALID_ARGUMENT)
        monkeypatch.setattr(spool.chains["acme"], "append", full)
    outbox = Outbox(spool, upstream.export)
    assert not await outbox.flush()
    assert upstream.bodies == [b"globex"]
    monkeypatch.undo()
    upstream.refused = {}
    if fault == "unreadable":
        segment.with_suffix(".gone").rename(segment)
    assert await outbox.flush()
    assert upstream.bodies == [b"globex", b"acme"]


async def test_a_fault_of_ours_costs_one_batch(spool: Spool) -> None:
    upstream = Upstream()
    upstream.failures = [ValueError("cannot be serialised")]
    put(spool, "acme", b"one", spans=2)
    assert await Outbox(spool, upstream.export).flush()
    assert upstream.drops == {("agent.spool", "span", "refused", "acme"): 2}


async def test_a_batch_that_is_always_refused_is_given_up(spool: Spool) -> None:
    upstream = Upstream()
    upstream.failures = [refusal(grpc.StatusCode.INTERNAL) for _ in range(10)]
    box = Outbox(spool, upstream.export)
    put(spool, "acme", b"one", spans=2)
    for _ in range(9):
        assert not await box.flush()
    assert await box.flush()
    assert upstream.drops == {("agent.spool", "span", "refused", "acme"): 2}


async def test_no_refusal_while_nobody_looks_costs_anything(spool: Spool) -> None:
    upstream = Upstream()
    upstream.failures = [refusal(grpc.StatusCode.UNAVAILABLE) for _ in range(50)]
    box = Outbox(spool, upstream.export)
    put(spool, "acme", b"one")
    for _ in range(50):
        assert not await box.flush()
    assert await box.flush()
    assert upstream.bodies == [b"one"]


async def test_every_batch_fits_into_one_message(spool: Spool) -> None:
    upstream = Upstream()
    for number in range(20):
        put(spool, "acme", bytes([number]) * 1_048_576)
    for number in range(9000):
        put(spool, "acme", b"%d" % number)
    assert await Outbox(spool, upstream.export).flush()
    assert max(request.ByteSize() for request in upstream.taken) < 4 << 20
    assert len(upstream.bodies) == 9020
    assert max(len(request.resource_spans) for request in upstream.taken) <= BatchLimits().entries


async def test_tenants_take_turns(spool: Spool) -> None:
    upstream = Upstream()
    for number in range(10):
        put(spool, "acme", b"a%d" % number)
    put(spool, "globex", b"g")
    assert await Outbox(spool, upstream.export, BatchLimits(entries=2)).flush()
    assert upstream.bodies.index(b"g") == 2


async def test_what_the_control_plane_has_already_is_not_sent_again(tmp_path: Path, spool: Spool) -> None:
    upstream = Upstream()
    put(spool, "acme", b"one")
    before = spool.chains["acme"].batch(BatchLimits())
    assert before is not None
    put(spool, "acme", b"two")
    spool.close()
    (tmp_path / "spool" / "acme" / "cursor").unlink()  # it does not know any more that the first one went up
    again = Spool(tmp_path / "spool", lambda: b"n" * 16)
    upstream.mark = before.last
    box = Outbox(again, upstream.export)
    batch = again.chains["acme"].batch(BatchLimits())
    assert batch is not None
    assert batch.first == before.first
    await box._send("acme", batch, 1.0)
    upstream.mark = 0
    assert await box.flush()
    assert upstream.bodies[-1:] == [b"two"]
    assert len(upstream.taken) == 2
    again.close()


async def test_a_spool_that_was_put_back_goes_on_under_another_name(spool: Spool) -> None:
    upstream = Upstream()
    put(spool, "acme", b"one")
    upstream.mark = 2**62
    box = Outbox(spool, upstream.export)
    names = iter([b"n" * 16])
    spool.new_id = lambda: next(names)
    batch = spool.chains["acme"].batch(BatchLimits())
    assert batch is not None
    assert await box._send("acme", batch, 1.0)
    upstream.mark = 0
    assert await box.flush()
    assert [request.run_id for request in upstream.taken] == [(b"r" * 16).hex(), (b"n" * 16).hex()]
    assert upstream.bodies == [b"one", b"one"]


async def test_nothing_to_say_is_not_said(spool: Spool) -> None:
    upstream = Upstream()
    assert await Outbox(spool, upstream.export).flush()
    assert upstream.tried == 0


async def test_what_is_owed_goes_up_by_itself(spool: Spool) -> None:
    upstream = Upstream()
    owed = Drops({("agent.receive", "span", "overload", "acme"): 2, ("agent.receive", "call", "overload", ""): 1})
    spool.owe(owed)
    assert await Outbox(spool, upstream.export).flush()
    assert upstream.drops == owed
