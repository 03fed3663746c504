"""Daena on a small real mesh: each service a process with an identity of its own."""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meshwarden.controlplane.policy.neutral import Caller, Name

AGENTS = {"analyst": "acme", "sceptic": "globex", "scholar": "daena"}
DAENA = ("-m", "meshwarden.examples.daena")
COUNCIL, CONVENER = Caller("daena", "council"), Caller("daena", "convener")


class Daena:
    """All its services."""

    def __init__(self, mesh: Any) -> None:
        agents = {Caller(tenant, name) for name, tenant in AGENTS.items()}
        mesh.others = {
            Name("daena", "bus"): {*agents, COUNCIL, CONVENER},
            Name("daena", "model"): {*agents, CONVENER},
            Name("daena", "memory"): {COUNCIL, CONVENER},
            Name("daena", "council"): {CONVENER},
            **{Name(tenant, name): {COUNCIL, CONVENER} for name, tenant in AGENTS.items()},
        }
        self.mesh = mesh
        self.workloads: dict[str, Any] = {}
        self.programs: dict[str, Any] = {}

    def start(self, name: str, *arguments: str, tenant: str = "daena") -> None:
        workload = self.workloads.get(name) or self.mesh.workload(tenant, name, self.mesh.port())
        self.workloads[name] = workload
        self.programs[name] = workload.start(*DAENA, *arguments)

    def start_all(self) -> None:
        self.start("bus", "bus")
        self.start("model", "model")
        self.start("memory", "memory", "--directory", str(self.mesh.directory / "nbmf"))
        for name, tenant in AGENTS.items():
            self.start(name, "agent", "--name", name, tenant=tenant)
        self.start("council", "council")
        for name, workload in self.workloads.items():
            self.mesh.until_open(workload, self.programs[name])
        self.workloads["convener"] = self.mesh.workload("daena", "convener")

    def convene(self, *arguments: str) -> list[dict[str, Any]]:
        """What the convener prints."""
        program = self.workloads["convener"].start(*DAENA, "convene", *arguments)
        lines = program.popen.stdout.readlines()
        program.popen.wait()
        assert lines, "".join(program.log)
        return [json.loads(line) for line in lines]

    def stats(self) -> dict[str, list[dict[str, Any]]]:
        (found,) = self.convene("--stats")
        return found

    def all_listen(self) -> bool:
        """Whether every agent is subscribed to the bus."""
        queues = [point for point in self.stats()["bus.daena"] if point["name"] == "bus.queue.length"]
        return len(queues) == len(AGENTS)


@pytest.fixture
def daena(mesh: Any, port: int) -> Daena:
    made = Daena(mesh)
    made.start_all()
    return made


def test_rounds_are_held_kept_and_verified_and_all_end_cleanly(daena: Daena, until: Callable[..., Any]) -> None:
    held = daena.convene("--rounds", "3")
    assert [one.get("verified") for one in held] == [True] * 3, held
    for name, program in daena.programs.items():
        assert program.end() == 0, (name, program.log)
        assert any("stopped" in line for line in program.log), (name, program.log)


def test_a_round_is_one_trace_and_its_message_leads_back_to_it(daena: Daena, until: Callable[..., Any]) -> None:
    # What was published before is not for it.
    until(daena.all_listen, "every agent listens")
    (held,) = daena.convene("--rounds", "1")

    def spans() -> dict[str, list[Any]]:
        """By workload, those of the round's trace."""
        return {
            name: [span for span in workload.agent.spans if span.trace_id.hex() == held["trace_id"]]
            for name, workload in daena.workloads.items()
        }

    def is_whole() -> bool:
        everything = [span for some in spans().values() for span in some]
        ids = {span.span_id for span in everything}
        calls = [span for span in everything if any(item.key == "rpc.method" for item in span.attributes)]
        sides = Counter(span.kind for span in calls)
        tops = [span for span in everything if span.parent_span_id not in ids]
        return len(tops) == 1 and sides[Span.SPAN_KIND_CLIENT] == sides[Span.SPAN_KIND_SERVER]

    until(is_whole, "one tree")
    names = {name: {span.name for span in some} for name, some in spans().items()}
    assert {"scout", "debate", "commit", "publish decisions"} <= names["council"]
    assert {"nbmf write", "nbmf read"} <= names["memory"]
    assert all("chat stand-in" in names[agent] for agent in AGENTS)

    def linked(agent: str) -> bool:
        links = [link for span in daena.workloads[agent].agent.spans for link in span.links]
        return held["trace_id"] in {link.trace_id.hex() for link in links}

    until(lambda: all(linked(agent) for agent in AGENTS), "every agent has heard")


def test_without_opentelemetry_rounds_are_held_all_the_same(mesh: Any) -> None:
    # A module of this name that can't be imported stands for its absence.
    hidden = mesh.directory / "hidden"
    hidden.mkdir()
    (hidden / "opentelemetry.py").write_text("raise ImportError\n")
    mesh.plain_environment["PYTHONPATH"] = str(hidden)
    daena = Daena(mesh)
    daena.start_all()
    (held,) = daena.convene("--rounds", "1")
    assert (held["verified"], held["trace_id"], held["absent"]) == (True, "", [])


def test_what_is_too_large_for_a_service_is_refused_and_it_goes_on(daena: Daena) -> None:
    caller = daena.workloads["convener"].start("-c", TOO_LARGE)
    assert caller.popen.stdout.read().split() == ["RESOURCE_EXHAUSTED"] * 3, caller.log
    assert [one.get("verified") for one in daena.convene("--rounds", "1")] == [True]


TOO_LARGE = """
import grpc
from meshwarden import sdk
from meshwarden.examples.daena import daena_pb2 as pb, daena_pb2_grpc as stubs

with sdk.channel("xds:///council.daena") as council, sdk.channel("xds:///memory.daena") as memory:
    for call, request in [
        (stubs.CouncilStub(council).Hold, pb.HoldRequest(question="?" * (2 << 20))),
        (stubs.MemoryStub(memory).Write, pb.WriteRequest(kind="decision", fields={"a": "b" * (2 << 20)})),
        (stubs.MemoryStub(memory).Read, pb.ReadRequest(id="0" * (1 << 20))),
    ]:
        try:
            call(request, timeout=60)
        except grpc.RpcError as error:
            print(error.code().name)
"""


def test_a_round_goes_on_without_an_agent_and_without_two_it_says_so(daena: Daena, until: Callable[..., Any]) -> None:
    assert daena.programs["sceptic"].end() == 0
    (held,) = daena.convene("--rounds", "1")
    assert (held["verified"], held["absent"]) == (True, ["sceptic"])
    assert daena.programs["analyst"].end() == 0
    (held,) = daena.convene("--rounds", "1")
    assert held["error"] == "UNAVAILABLE: 1 of 3 agents have a finding; 2 are needed"
    points = {(point["name"], *point["attributes"].values()): point["value"] for point in stats_of(daena, "council")}
    assert points["council.rounds", "away"] == points["council.rounds", "decided"] == 1


def stats_of(daena: Daena, name: str) -> list[dict[str, Any]]:
    daena.start("analyst", "agent", "--name", "analyst", tenant="acme")
    daena.start("sceptic", "agent", "--name", "sceptic", tenant="globex")
    for agent in ("analyst", "sceptic"):
        daena.mesh.until_open(daena.workloads[agent], daena.programs[agent])
    return daena.stats()[f"{name}.daena"]


def test_a_bus_that_comes_back_is_subscribed_to_again(daena: Daena, until: Callable[..., Any]) -> None:
    assert daena.programs["bus"].end() == 0
    daena.start("bus", "bus")
    daena.mesh.until_open(daena.workloads["bus"], daena.programs["bus"])

    until(daena.all_listen, "every agent listens again")
    assert [one.get("verified") for one in daena.convene("--rounds", "2")] == [True, True]


def test_a_decision_that_is_spoilt_on_the_disk_is_never_read_and_keeps_no_round_from_being_held(
    daena: Daena, until: Callable[..., Any]
) -> None:
    (held,) = daena.convene("--rounds", "1")
    assert daena.programs["memory"].end() == 0
    with contextlib.closing(sqlite3.connect(daena.mesh.directory / "nbmf" / "warm.sqlite")) as database, database:
        ((frame,),) = database.execute("SELECT frame FROM record")
        database.execute("UPDATE record SET frame = ?", (frame[:-1] + bytes([frame[-1] ^ 1]),))
    daena.start("memory", "memory", "--directory", str(daena.mesh.directory / "nbmf"))
    daena.mesh.until_open(daena.workloads["memory"], daena.programs["memory"])
    (read,) = daena.convene("--read", held["record"])
    assert read["error"].startswith(f"DATA_LOSS: record {held['record']}")

    def corrupt() -> float:
        return {point["name"]: point["value"] for point in daena.stats()["memory.daena"]}["nbmf.corrupt"]

    assert corrupt() == 1, "the convener's read"
    # The council's own channel to the memory may still be waiting before it tries again.
    until(lambda: daena.convene("--rounds", "1")[0].get("verified"), "a round is held")
    assert corrupt() > 1, "and the council's"
