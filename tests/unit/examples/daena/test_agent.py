"""The agents: each thinks for itself with the model's help, and hears what was decided once."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc, notes
from meshwarden.examples.daena.agent.listener import Listener
from meshwarden.examples.daena.agent.mind import Mind
from meshwarden.examples.daena.agent.service import MAX_EARLIER, Agent
from meshwarden.examples.daena.metric import Meter
from meshwarden.examples.daena.model.client import ModelClient
from meshwarden.examples.daena.model.service import Model

QUESTION = "Should a caller retry a request that has timed out?"
F = daena_pb2.Finding


def test_an_agent_votes_for_what_bears_on_the_question_and_its_notes_bear_out() -> None:
    mind = Mind("scholar", notes.lines("scholar"))
    findings = [
        ("analyst", "Idempotency keys make a retry of a request safe."),
        ("sceptic", "Traffic within a zone is free."),
        ("scholar", "A caller should retry a request that has timed out."),
    ]
    assert mind.vote(QUESTION, findings) == "analyst"
    assert mind.vote(QUESTION, findings[2:]) == ""
    assert Mind("empty", ()).vote(QUESTION, findings[:2]) in ("analyst", "sceptic")


@pytest.fixture
def agent(dial: Any, callers: Any) -> tuple[daena_pb2_grpc.AgentStub, Meter]:
    model = Model(Meter(), callers.identify)
    channel = dial(lambda server: daena_pb2_grpc.add_ModelServicer_to_server(model, server))
    meter, mind = Meter(), Mind("sceptic", notes.lines("sceptic"))
    servicer = Agent(mind, ModelClient(daena_pb2_grpc.ModelStub(channel), "sceptic", meter), meter)
    own = dial(lambda server: daena_pb2_grpc.add_AgentServicer_to_server(servicer, server))
    return daena_pb2_grpc.AgentStub(own), meter


def test_scouting_and_debating_go_through_the_model(agent: Any) -> None:
    stub, meter = agent
    found = stub.Scout(daena_pb2.ScoutRequest(question=QUESTION, earlier=["Retries of a request wait."]))
    assert found.agent == "sceptic"
    assert "not idempotent" in found.text
    said = stub.Debate(
        daena_pb2.DebateRequest(
            question=QUESTION,
            findings=[F(agent="analyst", text="Retry once."), F(agent="scholar", text="Never retry a request."), found],
        )
    )
    assert [one.agent for one in said.critiques] == ["analyst", "scholar"]
    assert all(one.text for one in said.critiques)
    assert said.vote == "scholar"
    used = [point.count for point in meter.stats().points if point.name == "gen_ai.client.token.usage"]
    assert used == [3, 3]


def test_what_was_decided_earlier_is_material(agent: Any) -> None:
    stub, _ = agent
    earlier = "Zebras retry a request that has timed out, caller or not."
    assert "Zebras" in stub.Scout(daena_pb2.ScoutRequest(question=QUESTION, earlier=[earlier])).text


def test_the_largest_requests_fit_the_model(agent: Any) -> None:
    stub, _ = agent
    words = "retry a request. " * 240
    question = "retry? " * 73
    assert stub.Scout(daena_pb2.ScoutRequest(question=question, earlier=[words] * MAX_EARLIER), timeout=60).text
    findings = [F(agent=f"a{number}", text=words) for number in range(16)]
    assert len(stub.Debate(daena_pb2.DebateRequest(question=question, findings=findings), timeout=60).critiques) == 16


LONG = "x" * 4097


@pytest.mark.parametrize(
    ("field", "method", "request_"),
    [
        ("question", "Scout", daena_pb2.ScoutRequest()),
        ("question", "Scout", daena_pb2.ScoutRequest(question="?" * 513)),
        ("earlier", "Scout", daena_pb2.ScoutRequest(question="?", earlier=["a"] * 5)),
        ("earlier[1]", "Scout", daena_pb2.ScoutRequest(question="?", earlier=["a", LONG])),
        ("question", "Debate", daena_pb2.DebateRequest(findings=[F(agent="a", text="b")])),
        ("findings", "Debate", daena_pb2.DebateRequest(question="?")),
        (
            *("findings", "Debate"),
            daena_pb2.DebateRequest(question="?", findings=[F(agent=f"a{n}", text="b") for n in range(17)]),
        ),
        ("findings", "Debate", daena_pb2.DebateRequest(question="?", findings=[F(agent="a", text="b")] * 2)),
        ("findings[0].agent", "Debate", daena_pb2.DebateRequest(question="?", findings=[F(agent="A\n", text="b")])),
        ("findings[0].text", "Debate", daena_pb2.DebateRequest(question="?", findings=[F(agent="a", text=LONG)])),
        ("findings[0].text", "Debate", daena_pb2.DebateRequest(question="?", findings=[F(agent="a")])),
    ],
)
def test_bad_fields_are_named_and_cost_no_tokens(
    agent: Any, refused: Callable[..., str], field: str, method: str, request_: Any
) -> None:
    stub, meter = agent
    said = refused(grpc.StatusCode.INVALID_ARGUMENT, getattr(stub, method), request_)
    assert said.startswith(f"{field}: ")
    assert not [point for point in meter.stats().points if point.count]


class Bus(daena_pb2_grpc.BusServicer):
    """Sends what it is given, breaks once in the middle, and says twice what was not acknowledged."""

    def __init__(self, payloads: list[bytes]) -> None:
        self._payloads = payloads
        self.acknowledged: list[int] = []
        self.streams = 0
        self.ended = threading.Event()

    def Subscribe(self, request: Any, context: Any) -> Iterator[daena_pb2.Message]:  # noqa: N802
        self.streams += 1
        half = len(self._payloads) // 2 if self.streams == 1 else len(self._payloads)
        for number, payload in enumerate(self._payloads[:half]):
            yield daena_pb2.Message(id=number, topic=request.topic, payload=payload)
        if self.streams == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        context.add_callback(self.ended.set)
        self.ended.wait(20)

    def Acknowledge(self, request: Any, context: Any) -> daena_pb2.AcknowledgeResponse:  # noqa: N802
        fresh = [number for number in request.ids if number not in self.acknowledged]
        self.acknowledged += fresh
        return daena_pb2.AcknowledgeResponse(acknowledged=len(fresh))


def test_each_decision_is_counted_once_however_often_it_comes(dial: Any) -> None:
    payloads = [
        daena_pb2.Announcement(winner="sceptic").SerializeToString(),
        daena_pb2.Announcement(winner="scholar").SerializeToString(),
        b"\xff\xff\xff",
        daena_pb2.Announcement(winner="sceptic").SerializeToString(),
    ]
    bus, meter = Bus(payloads), Meter()
    channel = dial(lambda server: daena_pb2_grpc.add_BusServicer_to_server(bus, server))
    listener = Listener(daena_pb2_grpc.BusStub(channel), "sceptic", meter, random.Random(1))
    thread = threading.Thread(target=listener.run)
    thread.start()

    def outcomes() -> Counter[str]:
        return Counter({point.attributes["outcome"]: int(point.value) for point in meter.stats().points})

    pause = threading.Event()
    for _ in range(1000):
        if outcomes().total() >= 4:
            break
        pause.wait(0.01)
    listener.close()
    thread.join()
    assert bus.streams == 2
    assert bus.acknowledged == [0, 1, 2, 3]
    assert outcomes() == {"taken": 2, "overruled": 1, "unreadable": 1}


def test_a_listener_that_is_closed_before_it_begins_ends(dial: Any) -> None:
    channel = dial(lambda server: daena_pb2_grpc.add_BusServicer_to_server(Bus([]), server))
    listener = Listener(daena_pb2_grpc.BusStub(channel), "sceptic", Meter(), random.Random(1))
    listener.close()
    listener.run()
