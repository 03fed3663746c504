"""What an agent is told: wrong keys are named, the environment goes first."""

import json
from pathlib import Path

import pytest

from meshwarden.agents.config import ConfigError, load

GOOD = {
    "node": "node-a",
    "control_plane": "127.0.0.1:7443",
    "ca_file": "/ca.pem",
    "trust_domain": "mesh.test",
    "state_dir": "/var/lib/mw",
}


def write(path: Path, **values: object) -> Path:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return path


def test_sockets_lie_below_the_state_directory_unless_said(tmp_path: Path) -> None:
    config = load(write(tmp_path / "a.toml", **GOOD))
    assert config.agent_socket == Path("/var/lib/mw/run/agent.sock")
    assert config.advertise_address == "127.0.0.1"
    config = load(write(tmp_path / "b.toml", **GOOD, agent_socket="/run/a.sock"))
    assert (config.agent_socket, config.run_dir) == (Path("/run/a.sock"), Path("/run"))


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWARDEN_AGENT_NODE", "node-b")
    monkeypatch.setenv("MESHWARDEN_AGENT_STATE_DIR", "/else")
    config = load(write(tmp_path / "a.toml", **GOOD))
    assert (config.node, config.agent_socket) == ("node-b", Path("/else/run/agent.sock"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node", "Node A"),
        ("node", "node-a\n"),
        ("control_plane", "nowhere"),
        ("control_plane", "host:0"),
        ("control_plane", "host:99999"),
        ("trust_domain", "Mesh.Test"),
        ("agent_socket", "relative.sock"),
        ("agent_socket", "/" + "a" * 120),
        ("advertise_address", "localhost"),
        ("zone", "z" * 64),
        ("envoy_concurrency", 0),
        ("unknown", "x"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        load(write(tmp_path / "a.toml", **{**GOOD, key: value}))


def test_there_may_be_several_control_planes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(write(tmp_path / "a.toml", **GOOD)).addresses == ("127.0.0.1:7443",)
    rest = {key: value for key, value in GOOD.items() if key != "control_plane"}
    several = ["a.example:7443", "[::1]:7443"]
    assert load(write(tmp_path / "b.toml", **rest, control_planes=several)).addresses == tuple(several)
    monkeypatch.setenv("MESHWARDEN_AGENT_CONTROL_PLANES", json.dumps(several[:1]))
    assert load(write(tmp_path / "c.toml", **rest)).addresses == ("a.example:7443",)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "control_plane"),
        ({"control_planes": []}, "control_plane"),
        ({"control_plane": "a:1", "control_planes": ["b:1"]}, "one of the two"),
        ({"control_planes": ["a:1", "a:1"]}, "said twice"),
        ({"control_planes": ["a:1", "nowhere"]}, r"control_planes\.1"),
        ({"control_planes": ["a:1", ""]}, r"control_planes\.1"),
        ({"control_planes": [f"a:{port}" for port in range(1, 18)]}, "control_planes"),
        ({"control_planes": "a:1"}, "control_planes"),
    ],
)
def test_where_the_control_planes_are_must_be_clear(tmp_path: Path, said: dict[str, object], reason: str) -> None:
    rest = {key: value for key, value in GOOD.items() if key != "control_plane"}
    with pytest.raises(ConfigError, match=reason):
        load(write(tmp_path / "a.toml", **rest, **said))


@pytest.mark.parametrize("content", ["", "node = ", "\x00", "node = 1\nnode = 2"])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.toml"):
        load(tmp_path / "a.toml")
