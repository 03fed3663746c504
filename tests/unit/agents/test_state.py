"""The agent's place on disk: one agent, whatever is configured; what a crash has left is cleared away."""

import socket
from pathlib import Path

import pytest

from meshwarden.agents.config import AgentConfig
from meshwarden.agents.state import StateTaken, hold


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")  # short: sockets lie below


def config(place: Path, state: str, **sockets: Path) -> AgentConfig:
    return AgentConfig(
        node="node-a",
        control_plane="127.0.0.1:1",
        ca_file=place / "ca.pem",
        trust_domain="mesh.test",
        state_dir=place / state,
        **sockets,
    )


def test_one_agent_on_a_state_directory(place: Path) -> None:
    taken = pytest.raises(StateTaken, match=r"another agent \(pid \d+\) runs on")
    with hold(config(place, "a")), taken, hold(config(place, "a")):
        pass
    with hold(config(place, "a")):
        pass


def test_two_agents_do_not_share_a_directory_of_workloads(place: Path) -> None:
    one = config(place, "a", agent_socket=place / "run/a.sock")
    two = config(place, "b", agent_socket=place / "run/b.sock")
    with hold(one) as held:
        (held.workloads / "x").mkdir()
        with pytest.raises(StateTaken, match="say an agent_socket in another directory"), hold(two):
            pass
        assert (held.workloads / "x").exists()


def test_a_socket_that_is_served_is_not_taken_over(place: Path) -> None:
    path = place / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        with hold(config(place, "a", workload_api_socket=path)):
            pass  # left there by somebody dead
        other.listen()
        with pytest.raises(StateTaken, match=r"api\.sock"), hold(config(place, "a", workload_api_socket=path)):
            pass


def test_what_a_crash_has_left_is_cleared_away(place: Path) -> None:
    with hold(config(place, "a")) as held:
        (held.inner / "0123456789ab").touch()
    with hold(config(place, "a")) as held:
        assert not list(held.inner.iterdir())
