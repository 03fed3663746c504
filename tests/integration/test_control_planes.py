"""An agent that knows several control planes: it goes to the next, takes all along, and comes back to the first."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_agent_quota import PROGRAM, limited, say, shares, until_limited, until_told, usage
from test_agent_telemetry import TRACED, spans

from meshwarden.v1 import node_service_pb2 as node_pb

SHOW = "import os,sys,json; print(json.dumps(dict(os.environ))); sys.stdout.flush(); sys.stdin.read()"


async def another(control_plane: Any, directory: Any, entry: Any, *, authority: Any) -> Any:
    """A control plane beside the first."""
    made = type(control_plane)(directory)
    made.authority = authority or made.authority
    await made.start()
    made.push(entries=entry.set(entry.of("acme", "web")))
    made.push(bundle=made.bundle.to_proto())
    return made


@pytest.fixture
async def second(control_plane: Any, short_dir: Any, entry: Any) -> AsyncIterator[Any]:
    """Another of the same mesh."""
    plane = await another(control_plane, short_dir, entry, authority=control_plane.authority)
    yield plane
    await plane.stop()


@pytest.fixture
async def foreign(control_plane: Any, short_dir: Any, entry: Any) -> AsyncIterator[Any]:
    """One that says that it is of the mesh, and isn't."""
    plane = await another(control_plane, short_dir, entry, authority=None)
    yield plane
    await plane.stop()


def knows(agent: Any, *planes: Any) -> None:
    """Has an agent know these, in this order."""
    lines = [line for line in agent.config.read_text().splitlines() if not line.startswith("control_plane ")]
    addresses = json.dumps([f"127.0.0.1:{plane.port}" for plane in planes])
    agent.config.write_text("\n".join([f"control_planes = {addresses}", *lines]))


async def test_it_goes_to_the_next_with_all_that_it_has_and_comes_back(
    agent: Any, control_plane: Any, second: Any, until: Any
) -> None:
    knows(agent, control_plane, second)
    for plane in (control_plane, second):
        limited(plane)
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", PROGRAM)
    await until_limited(program)
    assert (control_plane.opened, second.opened) == (1, 0)

    await control_plane.stop()
    await until(lambda: len(second.sessions) == 1, "it is at the second")
    for kind in ("interest", "workloads"):
        await until(lambda kind=kind: second.last(kind), f"it says its {kind} there")
    # Shares come from there, and so goes what was reported meanwhile.
    say(program, {"sequence": 1000, "points": [{"usages": [usage("globex", 2)]}]})
    await until_told(program, lambda answer: ("globex", 7) in shares(answer))
    await until(lambda: second.shared, "the second hears what is used")
    traced = agent.exec("web", sys.executable, "-c", TRACED)
    assert (await asyncio.to_thread(traced.stdout.readline)).strip() == "done", traced.stderr.read()
    await until(lambda: spans(second), "spans go to the second")
    assert not spans(control_plane)

    # At its next renewal it sees that the first is there again.
    await control_plane.start_again()
    second.push(renew_now=node_pb.RenewNow(reason="test"))
    await until(lambda: control_plane.opened == 2 and not second.sessions, "it is back at the first")
    assert (await agent.status())["connected"]


async def test_it_attests_where_somebody_answers_and_says_who_does_not(
    agent: Any, control_plane: Any, second: Any, until: Any
) -> None:
    await control_plane.stop()
    second.tokens = control_plane.tokens
    knows(agent, control_plane, second)
    await agent.ready()
    await until(lambda: len(second.sessions) == 1, "it is at the second")
    assert f"127.0.0.1:{control_plane.port} does not answer" in agent.log.read_text()
    await second.stop()

    async def both_are_away() -> bool:
        return str((await agent.status())["lastError"]).count("Connection refused") >= 2

    await until(both_are_away, "its status tells of both")
    await second.start_again()
    await until(lambda: len(second.sessions) == 1, "it is at the second again")
    await control_plane.start_again()


async def test_each_must_prove_itself(agent: Any, control_plane: Any, foreign: Any, until: Any) -> None:
    knows(agent, foreign, control_plane)
    await agent.ready()
    await until(lambda: len(control_plane.sessions) == 1, "it is at the one that is of the mesh")
    assert not foreign.handlers
    assert foreign.tokens  # and was told none
