"""The link to the agent, where there is none or a slow one."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.sdk import agent
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.red.count import MAX_STATS, Call
from meshwarden.sdk.tracing.numbered import Number, find
from meshwarden.v1 import workload_service_pb2 as pb
from meshwarden.v1 import workload_service_pb2_grpc as pb_grpc
from meshwarden.v1.report_pb2 import CallStat

CALL = Call("", "platform/orders", "/o.Orders/Get", "OK", CallStat.ALLOWED, CallStat.SOURCE, 1)


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentLink]:
    monkeypatch.setenv("MESHWARDEN_AGENT_SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.setattr(AgentLink, "made", None)
    link = AgentLink.of_process()
    yield link
    link.close()


def test_a_process_has_one_link(link: AgentLink) -> None:
    assert AgentLink.of_process() is link


class Agent(pb_grpc.WorkloadServiceServicer):
    """Notes what is reported, and answers as it is told to."""

    def __init__(self, socket: Path) -> None:
        self.answers: list[grpc.StatusCode] = []
        self.heard: list[tuple[Number | None, int, dict[tuple[str, str], int]]] = []
        self.leaves: threading.Event | None = None
        self.left = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(2))
        pb_grpc.add_WorkloadServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def Report(self, request: pb.ReportCallsRequest, context: Any) -> pb.ReportCallsResponse:  # noqa: N802
        drops = {(drop.signal, drop.reason): drop.count for drop in request.drops}
        number = find(context.invocation_metadata())
        self.heard.append((number, sum(sum(table.counts) for table in request.call_tables), drops))
        if self.answers:
            context.abort(self.answers.pop(0), "as told")
        return pb.ReportCallsResponse()

    def Leave(self, request: pb.LeaveRequest, context: Any) -> Iterator[pb.LeaveResponse]:  # noqa: N802
        context.add_callback(self.left.set)
        if self.leaves is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "of before there was any")
        assert self.leaves is not None
        self.leaves.wait(60)
        yield pb.LeaveResponse()
        self.left.wait(60)

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def told(link: AgentLink) -> Iterator[Agent]:
    """The agent of `link`, which has its reporting to the test."""
    link._closing.set()
    link._reporting.join(60)
    link._closing.clear()
    agent = Agent(link.socket)
    grpc.channel_ready_future(link._channel).result(60)
    yield agent
    agent.stop()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_report_whose_fate_is_not_known_goes_again_as_it_was(
    link: AgentLink, told: Agent, code: grpc.StatusCode
) -> None:
    told.answers = [code, code]
    link.counter.add(CALL, time.perf_counter())
    link.losses.add("span", "queue_full", 5)
    link.flush()
    link.counter.add(CALL, time.perf_counter())
    link.losses.add("span", "queue_full", 2)
    link.flush()
    link.flush()
    number = told.heard[0][0]
    assert number is not None
    again = Number(number.run, number.sequence + 1)
    drops = {("span", "queue_full"): 5}
    assert told.heard == [(number, 1, drops)] * 3 + [(again, 1, {("span", "queue_full"): 2})]
    link.flush()
    assert len(told.heard) == 4


def test_what_was_lost_is_told_although_the_agent_refuses_the_calls(link: AgentLink, told: Agent) -> None:
    told.answers = [grpc.StatusCode.INVALID_ARGUMENT]
    link.counter.add(CALL, time.perf_counter())
    link.losses.add("span", "refused", 5)
    link.flush()
    link.flush()
    assert [heard[1:] for heard in told.heard] == [
        (1, {("span", "refused"): 5}),
        (0, {("span", "refused"): 5, ("call", "refused"): 1}),
    ]


def test_calls_that_there_was_no_room_for_are_told(link: AgentLink, told: Agent) -> None:
    for number in range(MAX_STATS + 3):
        link.counter.add(dataclasses.replace(CALL, status=str(number)), time.perf_counter())
    link.flush()
    link.flush()
    assert [heard[1:] for heard in told.heard] == [(MAX_STATS, {("call", "queue_full"): 3})]


def test_a_child_made_by_fork_reports_nothing_of_its_parents(link: AgentLink, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        link.close()
    assert not link._closing.is_set()


def test_a_child_made_by_fork_has_a_link_of_its_own_even_if_its_parent_was_making_one(tmp_path: Path) -> None:
    program = """
import os, threading
from meshwarden.sdk.agent import AgentLink
def fork(name):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    link = AgentLink.of_process()
    assert link is not theirs and AgentLink.of_process() is link
    print(name, flush=True)
    link.close()
    os._exit(0)
theirs = None
with AgentLink._lock:
    assert fork("amid") == 0
theirs = AgentLink.of_process()
assert fork("after") == 0
assert AgentLink.of_process() is theirs
"""
    variables = os.environ | {"MESHWARDEN_AGENT_SOCKET": str(tmp_path / "none.sock")}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables, timeout=60)
    assert (found.returncode, found.stdout.split()) == (0, ["amid", "after"]), found.stderr


class SlowAgent(pb_grpc.WorkloadServiceServicer):
    """Takes its time with a report."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.counted = 0

    def Report(self, request: pb.ReportCallsRequest, context: Any) -> pb.ReportCallsResponse:  # noqa: N802
        self.asked.set()
        self.go_on.wait(20)
        self.counted += sum(sum(table.counts) for table in request.call_tables) if context.is_active() else 0
        return pb.ReportCallsResponse()


def test_a_report_under_way_at_the_end_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_LAST_REPORT_S", 20.0)
    slow, server = SlowAgent(), grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_WorkloadServiceServicer_to_server(slow, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    link = AgentLink(tmp_path / "s")
    link.counter.add(CALL, time.perf_counter())
    assert slow.asked.wait(60)
    ending = threading.Thread(target=link.close)
    ending.start()
    slow.go_on.set()
    ending.join(30)
    server.stop(0).wait()
    assert (slow.counted, link.losses.total) == (1, 0)


def test_a_server_leaves_for_as_long_as_it_says_so(link: AgentLink, told: Agent) -> None:
    told.leaves = threading.Event()
    told.leaves.set()
    with link.leaving(60) as is_heard:
        assert is_heard
        assert not told.left.is_set()
    assert told.left.wait(60)


def test_an_agent_that_is_silent_is_not_waited_for(link: AgentLink, told: Agent) -> None:
    told.leaves = threading.Event()
    with link.leaving(0.05) as is_heard:
        assert not is_heard
    told.leaves.set()


def test_an_agent_that_is_away_or_knows_no_leaving_is_not_waited_for(link: AgentLink, told: Agent) -> None:
    with link.leaving(60) as is_heard:
        assert not is_heard
    told.stop()
    with link.leaving(60) as is_heard:
        assert not is_heard
    link.close()
    with link.leaving(60) as is_heard:
        assert not is_heard
