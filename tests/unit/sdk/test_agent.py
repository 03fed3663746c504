"""The link to the agent, where there is none or a slow one."""

import os
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
from meshwarden.sdk.count import Call
from meshwarden.v1 import workload_service_pb2 as pb
from meshwarden.v1 import workload_service_pb2_grpc as pb_grpc
from meshwarden.v1.report_pb2 import CallStat

CALL = Call("", "platform/orders", "/o.Orders/Get", "OK", CallStat.ALLOWED, CallStat.SOURCE, 1)


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentLink]:
    monkeypatch.setenv("MESHWARDEN_AGENT_SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.setattr(AgentLink, "_of_process", None)
    link = AgentLink.of_process()
    yield link
    link.close()


def test_a_process_has_one_link(link: AgentLink) -> None:
    assert AgentLink.of_process() is link


def test_counts_that_nobody_takes_are_kept(link: AgentLink) -> None:
    link.counter.add(CALL, time.perf_counter())
    link.flush()
    assert [stat.count for stat in link.counter.take()] == [1]


def test_a_child_made_by_fork_reports_nothing_of_its_parents(link: AgentLink, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: 1)
        link.close()
        its_own = AgentLink.of_process()
        assert its_own is not link
        its_own.close()
    assert not link._closing.is_set()


class SlowAgent(pb_grpc.WorkloadServiceServicer):
    """Takes its time with a report."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.counted = 0

    def Report(self, request: pb.ReportCallsRequest, context: Any) -> pb.ReportCallsResponse:  # noqa: N802
        self.asked.set()
        self.go_on.wait(20)
        self.counted += sum(stat.count for stat in request.calls) if context.is_active() else 0
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
    assert (slow.counted, link.counter.dropped) == (1, 0)
