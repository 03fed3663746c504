"""The control plane's own certificates under a clock that is set."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import AuthorityUnavailable
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.audit.port import AuditUnavailable
from meshwarden.controlplane.identity import operator, renewal, serving
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.sdk.tracing.own_span import own_provider


class Clock:
    """The real time and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> Any:
        return utc_now() + self.ahead


class World:
    def __init__(self, kind: str, directory: Path, audit: Any) -> None:
        self.clock, rng = Clock(), random.Random(1)
        self.authority = MemoryAuthority("a.test", self.clock, rng)
        # Some days after the root was made: it stays valid when the clock is set back.
        self.clock.ahead = timedelta(days=5)
        self.spans = list[Span]()
        more: dict[str, Any] = {"audit": audit, "clock": self.clock, "rng": rng}
        more["provider"] = own_provider("us", self._take)
        self.kept: Any = (
            ServingIdentity(self.authority, "a.test", "eu", **more)
            if kind == "serving"
            else OperatorCredential(self.authority, "a.test", "ann", directory, **more)
        )

    def _take(self, body: bytes, _: int) -> None:
        self.spans += [span for scope in ResourceSpans.FromString(body).scope_spans for span in scope.spans]

    @property
    def serial(self) -> str:
        return self.kept._svid.serial


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


@pytest.fixture(params=["serving", "operator"])
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(renewal, "TICK", timedelta(milliseconds=5))
    monkeypatch.setattr(serving, "RETRY_S", 0.005)
    monkeypatch.setattr(operator, "RETRY_S", 0.005)
    async with FileAuditLog.open(tmp_path / "audit.jsonl", utc_now) as audit:
        yield World(request.param, tmp_path / "operator", audit)


@pytest.mark.parametrize("turn", [timedelta(hours=2), timedelta(days=30), -timedelta(hours=2), -timedelta(days=4)])
async def test_a_clock_that_is_set_has_a_certificate_for_its_new_time(world: World, turn: timedelta) -> None:
    await world.kept.issue()
    first = world.serial
    async with anyio.create_task_group() as group:
        group.start_soon(world.kept.run)
        world.clock.ahead += turn
        await until(lambda: world.serial != first)
        group.cancel_scope.cancel()
    svid = world.kept._svid
    assert svid.not_before <= world.clock() < svid.not_after


async def test_a_certificate_in_its_first_half_is_left_alone(world: World) -> None:
    await world.kept.issue()
    first = world.serial
    looked = 0

    def clock() -> Any:
        nonlocal looked
        looked += 1
        return Clock.__call__(world.clock)

    world.kept._clock = clock
    async with anyio.create_task_group() as group:
        group.start_soon(world.kept.run)
        world.clock.ahead += timedelta(minutes=20)
        await until(lambda: looked > 3)
        group.cancel_scope.cancel()
    assert world.serial == first


async def test_what_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.kept.issue()
    first, sign, failed = world.serial, world.authority.sign, 0

    async def flaky(*arguments: Any) -> Any:
        nonlocal failed
        if failed < 3:
            failed += 1
            raise AuthorityUnavailable("Vault is away")
        return await sign(*arguments)

    monkeypatch.setattr(world.authority, "sign", flaky)
    async with anyio.create_task_group() as group:
        group.start_soon(world.kept.run)
        world.clock.ahead += timedelta(minutes=40)
        await until(lambda: world.serial != first)
        group.cancel_scope.cancel()
    assert failed == 3
    spans = [span for span in world.spans if said(span)["mesh.cause"].string_value == "half-life"]
    assert [span.status.code for span in spans] == [2, 2, 2, 0]
    assert "Vault is away" in spans[0].status.message
    assert said(spans[3])["mesh.serial"].string_value == world.serial


async def test_each_certificate_is_a_trace_of_its_own(world: World) -> None:
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))):  # of whoever comes by
        for _ in range(2):
            await world.kept.issue()
    assert [span.name for span in world.spans] == ["issue", "issue"]
    assert len({span.trace_id for span in world.spans}) == 2
    assert not any(span.parent_span_id for span in world.spans)
    causes = [said(span)["mesh.cause"].string_value for span in world.spans]
    assert causes == ["the control plane has started", "half-life"]
    about = said(world.spans[1])
    assert about["mesh.by"].string_value.endswith("CN=issuing of a.test,O=Meshwarden")
    svid = world.kept._svid
    (change,) = about["mesh.changes"].array_value.values
    assert change.string_value == (
        f"ISSUED certificate {world.serial} of {svid.spiffe_id} until {svid.not_after.isoformat()}"
    )


def said(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value for pair in span.attributes}


async def test_what_cannot_be_audited_serves_here_and_is_given_to_nobody(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.kept.issue()
    first = world.serial
    events = [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]

    async def full(*_: Any, **__: Any) -> None:
        raise AuditUnavailable("no space left on device")

    monkeypatch.setattr(world.kept._audit, "record", full)
    if isinstance(world.kept, ServingIdentity):
        assert events == ["controlplane.issue"]
        await world.kept.issue()
        assert world.serial != first
    else:
        assert events == ["operator.issue"]
        published = (tmp_path / "operator" / "tls.crt").read_bytes()
        with pytest.raises(AuditUnavailable):
            await world.kept.issue()
        assert (tmp_path / "operator" / "tls.crt").read_bytes() == published
