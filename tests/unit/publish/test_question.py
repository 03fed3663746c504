"""A question to an agent, and all that may come of it."""

import asyncio
from typing import Any

import pytest

from meshwarden.controlplane.publish import question as module
from meshwarden.controlplane.publish.question import Questions, Unanswered
from meshwarden.v1 import node_service_pb2 as v1


class Asked:
    """A question that is under way."""

    def __init__(self) -> None:
        self.said: list[v1.SyncResponse] = []
        self.questions = Questions(self.said.append)

    async def begin(self) -> "asyncio.Task[bytes]":
        task: asyncio.Task[bytes] = asyncio.ensure_future(self.questions.ask("acme/web#1/envoy"))  # type: ignore[assignment]
        await asyncio.sleep(0)
        return task

    def answer(self, part: bytes = b"", **fields: Any) -> None:
        number = fields.pop("id", self.said[-1].data_plane_question.id)
        self.questions.take(v1.DataPlaneAnswer(id=number, part=part, **fields))


async def test_parts_are_put_together() -> None:
    asked = Asked()
    task = await asked.begin()
    assert asked.said[0].data_plane_question.data_plane == "acme/web#1/envoy"
    asked.answer(b"a")
    asked.answer(b"b", last=True)
    asked.answer(b"c", last=True)
    assert await task == b"ab"


async def test_one_is_asked_at_a_time_and_then_the_next() -> None:
    asked = Asked()
    task = await asked.begin()
    with pytest.raises(Unanswered, match="another question"):
        await asked.questions.ask("acme/web#1/grpc")
    first = asked.said[0].data_plane_question.id
    asked.answer(error="no such Envoy", last=True)
    with pytest.raises(Unanswered, match="no such Envoy"):
        await task
    task = await asked.begin()
    assert asked.said[1].data_plane_question.id != first
    asked.answer(b"late", id=first, last=True)
    asked.answer(b"made up", id="x", last=True)
    asked.answer(b"it", last=True)
    assert await task == b"it"


async def test_too_much_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    asked = Asked()
    task = await asked.begin()
    for _ in range(5):
        asked.answer(b"12345678")
    with pytest.raises(Unanswered, match="more than 10"):
        await task


async def test_who_never_answers_or_leaves_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
    asked = Asked()
    with pytest.raises(Unanswered, match="older"):
        await asked.questions.ask("x")
    monkeypatch.setattr(module, "TIMEOUT_S", 60.0)
    task = await asked.begin()
    asked.questions.close()
    with pytest.raises(Unanswered, match="session has ended"):
        await task
    asked.answer(b"nobody waits")
