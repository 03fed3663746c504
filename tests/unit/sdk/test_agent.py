"""The link to the agent, where there is none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.count import Call
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
    link.counter.add(CALL, 0.1)
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
