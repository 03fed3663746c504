"""The council: every round ends in one decision that is kept before it is announced, or says why not."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.council.client import BusHerald, MemoryClient
from meshwarden.examples.daena.council.member import MAX_TEXT, Member, Speech
from meshwarden.examples.daena.council.service import MAX_ROUNDS, CouncilService
from meshwarden.examples.daena.council.session import Council
from meshwarden.examples.daena.council.tally import decide
from meshwarden.examples.daena.error import Away
from meshwarden.examples.daena.metric import Meter

NAMES = st.sampled_from(["analyst", "sceptic", "scholar", "nobody", ""])


@given(st.dictionaries(NAMES.filter(bool), st.text(), min_size=1), st.dictionaries(NAMES, NAMES))
def test_every_vote_is_counted_or_spoiled_and_no_finding_had_more(
    findings: dict[str, str], ballots: dict[str, str]
) -> None:
    outcome = decide(findings, ballots)
    assert outcome.winner in findings
    assert set(outcome.votes) == set(findings)
    assert sum(outcome.votes.values()) + outcome.spoiled == sum(bool(vote) for vote in ballots.values())
    assert max(outcome.votes.values()) == outcome.votes[outcome.winner]
    assert outcome == decide(dict(reversed(findings.items())), dict(reversed(ballots.items())))


def test_a_vote_for_oneself_or_for_what_is_no_finding_is_spoiled() -> None:
    outcome = decide({"a": "x", "b": "y"}, {"a": "a", "b": "c", "c": "b"})
    assert (outcome.winner, outcome.votes, outcome.spoiled) == ("b", {"a": 0, "b": 1}, 2)


class Seat:
    """A member that says what it is told to."""

    def __init__(self, name: str, finding: str | None, vote: str | None) -> None:
        self.name = name
        self._finding = finding
        self._vote = vote
        self.earlier: Sequence[str] = ()
        self.shown: Mapping[str, str] = {}

    def scout(self, question: str, earlier: Sequence[str]) -> str:
        self.earlier = earlier
        if self._finding is None:
            raise Away(self.name)
        return self._finding

    def debate(self, question: str, findings: Mapping[str, str]) -> Speech:
        self.shown = findings
        if self._vote is None:
            raise Away(self.name)
        return Speech({agent: f"{self.name} on {agent}" for agent in findings}, self._vote)


class World:
    """Memory and bus, in the order in which they were told."""

    def __init__(self, is_mute: bool = False) -> None:
        self.told: list[tuple[str, Any]] = []
        self._is_mute = is_mute

    def latest(self) -> list[str]:
        return ["what was decided before"]

    def keep(self, kind: str, fields: Mapping[str, str]) -> str:
        self.told.append((kind, dict(fields)))
        return "ab" * 32

    def announce(self, said: daena_pb2.Announcement) -> None:
        if self._is_mute:
            raise Away("bus: UNAVAILABLE")
        self.told.append(("announcement", said))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def test_a_round_scouts_debates_and_commits(executor: ThreadPoolExecutor) -> None:
    seats = [Seat("a", "of a", "b"), Seat("b", "of b", "a"), Seat("c", "of c", "b")]
    world = World()
    decision = Council(seats, world, world, executor).hold("r1", "Why?")
    assert (decision.winner, decision.text, dict(decision.votes)) == ("b", "of b", {"a": 1, "b": 2, "c": 0})
    assert (list(decision.absent), decision.spoiled, decision.record) == ([], 0, "ab" * 32)
    assert all(seat.earlier == ["what was decided before"] for seat in seats)
    assert all(seat.shown == {"a": "of a", "b": "of b", "c": "of c"} for seat in seats)
    (kind, fields), (_, said) = world.told
    assert kind == "decision"
    assert fields == {
        "round": "r1",
        "question": "Why?",
        "text": "of b",
        "winner": "b",
        "spoiled": "0",
        "votes.a": "1",
        "votes.b": "2",
        "votes.c": "0",
        "critique.a": "a on b",
        "critique.c": "c on b",
    }
    assert (said.round, said.winner, said.record) == ("r1", "b", "ab" * 32)


def test_a_round_goes_on_without_who_is_away_and_names_them(executor: ThreadPoolExecutor) -> None:
    seats = [Seat("a", None, "b"), Seat("b", "of b", None), Seat("c", "of c", "b")]
    world = World()
    decision = Council(seats, world, world, executor).hold("r1", "Why?")
    assert (decision.winner, list(decision.absent)) == ("b", ["a", "b"])
    assert set(seats[2].shown) == {"b", "c"}


def test_without_a_quorum_nothing_is_decided(executor: ThreadPoolExecutor) -> None:
    seats = [Seat("a", None, "b"), Seat("b", "of b", "a"), Seat("c", None, "b")]
    world = World()
    with pytest.raises(Away, match="1 of 3 agents have a finding; 2 are needed"):
        Council(seats, world, world, executor).hold("r1", "Why?")
    assert world.told == []


def test_what_could_not_be_announced_is_in_memory(executor: ThreadPoolExecutor) -> None:
    world = World(is_mute=True)
    with pytest.raises(Away, match="bus"):
        Council([Seat("a", "of a", "b"), Seat("b", "of b", "a")], world, world, executor).hold("r1", "Why?")
    assert [kind for kind, _ in world.told] == ["decision"]


class Hostile(daena_pb2_grpc.AgentServicer):
    """An agent of another tenant that answers whatever it likes."""

    def __init__(self) -> None:
        self.finding = daena_pb2.Finding()
        self.speech = daena_pb2.DebateResponse()

    def Scout(self, request: Any, context: Any) -> daena_pb2.Finding:  # noqa: N802
        return self.finding

    def Debate(self, request: Any, context: Any) -> daena_pb2.DebateResponse:  # noqa: N802
        return self.speech


def test_what_an_agent_says_is_bounded_and_its_name_is_ours_not_its_own(dial: Any) -> None:
    hostile = Hostile()
    channel = dial(lambda server: daena_pb2_grpc.add_AgentServicer_to_server(hostile, server))
    member = Member("sceptic", daena_pb2_grpc.AgentStub(channel))
    with pytest.raises(Away, match="sceptic: an empty finding"):
        member.scout("Why?", [])
    hostile.finding = daena_pb2.Finding(agent="analyst", text="x \n\n y" * 100_000)
    assert len(member.scout("Why?", [])) <= MAX_TEXT
    assert "\n" not in member.scout("Why?", [])
    words = [daena_pb2.Finding(agent=f"a{number}", text="y" * 5000) for number in range(100)]
    words.append(daena_pb2.Finding(agent="analyst", text="z" * 5000))
    hostile.speech = daena_pb2.DebateResponse(critiques=words, vote="v" * 100_000)
    speech = member.debate("Why?", {"analyst": "text"})
    assert speech.critiques == {"analyst": "z" * MAX_TEXT}
    assert decide({"analyst": "text"}, {"sceptic": speech.vote}).spoiled == 1


def test_an_agent_that_fails_is_away(dial: Any) -> None:
    channel = dial(lambda server: daena_pb2_grpc.add_AgentServicer_to_server(daena_pb2_grpc.AgentServicer(), server))
    member = Member("sceptic", daena_pb2_grpc.AgentStub(channel))
    with pytest.raises(Away, match="sceptic: UNIMPLEMENTED"):
        member.scout("Why?", [])
    with pytest.raises(Away, match="sceptic: UNIMPLEMENTED"):
        member.debate("Why?", {"a": "b"})


class Shaky(daena_pb2_grpc.MemoryServicer):
    """A memory of which one record is corrupt."""

    def List(self, request: Any, context: Any) -> daena_pb2.ListResponse:  # noqa: N802
        return daena_pb2.ListResponse(entries=[daena_pb2.Entry(id=one) for one in ("bad", "good")])

    def Read(self, request: Any, context: Any) -> daena_pb2.ReadResponse:  # noqa: N802
        if request.id == "bad":
            context.abort(grpc.StatusCode.DATA_LOSS, "corrupt")
        return daena_pb2.ReadResponse(record=daena_pb2.Record(fields={"text": "kept"}))


def test_a_corrupt_decision_does_not_keep_the_council_from_the_others(dial: Any) -> None:
    channel = dial(lambda server: daena_pb2_grpc.add_MemoryServicer_to_server(Shaky(), server))
    client = MemoryClient(daena_pb2_grpc.MemoryStub(channel))
    assert client.latest() == ["kept"]
    with pytest.raises(Away, match="memory: UNIMPLEMENTED"):
        client.keep("decision", {})


def test_a_bus_that_fails_is_away(dial: Any) -> None:
    channel = dial(lambda server: daena_pb2_grpc.add_BusServicer_to_server(daena_pb2_grpc.BusServicer(), server))
    with pytest.raises(Away, match="bus: UNIMPLEMENTED"):
        BusHerald(daena_pb2_grpc.BusStub(channel)).announce(daena_pb2.Announcement())


def serve_council(dial: Any, council: Council) -> tuple[daena_pb2_grpc.CouncilStub, Meter]:
    meter = Meter()
    servicer = CouncilService(council, meter, lambda: "r1")
    channel = dial(lambda server: daena_pb2_grpc.add_CouncilServicer_to_server(servicer, server))
    return daena_pb2_grpc.CouncilStub(channel), meter


@pytest.mark.parametrize("question", ["", " \n\t", "?" * 513, "ä" * 257])
def test_a_bad_question_is_refused(
    dial: Any, executor: ThreadPoolExecutor, refused: Callable[..., str], question: str
) -> None:
    world = World()
    stub, _ = serve_council(dial, Council([Seat("a", "of a", "")], world, world, executor))
    said = refused(grpc.StatusCode.INVALID_ARGUMENT, stub.Hold, daena_pb2.HoldRequest(question=question))
    assert said.startswith("question: ")
    assert world.told == []


def test_rounds_are_counted_by_what_they_came_to(
    dial: Any, executor: ThreadPoolExecutor, refused: Callable[..., str]
) -> None:
    world = World()
    seats = [Seat("a", "of a", "b"), Seat("b", "of b", "b"), Seat("c", "of c", None)]
    stub, _ = serve_council(dial, Council(seats, world, world, executor))
    decision = stub.Hold(daena_pb2.HoldRequest(question="Why\n\nnot?"))
    assert decision.question == "Why not?"
    seats[0]._finding = seats[1]._finding = None
    refused(grpc.StatusCode.UNAVAILABLE, stub.Hold, daena_pb2.HoldRequest(question="Why?"))
    found = {
        (point.name, *point.attributes.values()): point.value for point in stub.Stats(daena_pb2.StatsRequest()).points
    }
    assert found["council.rounds", "decided"] == found["council.rounds", "away"] == 1
    assert found["council.wins", "b"] == found["council.spoiled",] == found["council.absent", "c"] == 1


def test_more_rounds_than_there_is_room_for_are_refused(
    dial: Any, executor: ThreadPoolExecutor, refused: Callable[..., str]
) -> None:
    world, go = World(), threading.Event()
    begun = threading.Semaphore(0)

    class Slow(Seat):
        def scout(self, question: str, earlier: Sequence[str]) -> str:
            begun.release()
            assert go.wait(20)
            return "of a"

    stub, _ = serve_council(dial, Council([Slow("a", "", "")], world, world, executor))
    request = daena_pb2.HoldRequest(question="Why?")
    under_way = [stub.Hold.future(request, timeout=60) for _ in range(MAX_ROUNDS)]
    for _ in under_way:
        assert begun.acquire(timeout=60)
    refused(grpc.StatusCode.RESOURCE_EXHAUSTED, stub.Hold, request)
    go.set()
    assert {call.result().winner for call in under_way} == {"a"}
    assert stub.Hold(request).winner == "a"
