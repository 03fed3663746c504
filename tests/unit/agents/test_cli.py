"""The command line: where it finds the agent, and what it says when something is not there."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshwarden.agents import cli


def test_the_socket_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MESHWARDEN_AGENT_SOCKET", raising=False)
    assert cli.find_socket(None) == Path("/run/meshwarden/agent.sock")
    (tmp_path / "meshwarden").mkdir()
    contexts = tmp_path / "meshwarden/contexts.json"
    for junk in ("", "[]", "{}", '{"current": "a", "contexts": {"a": {"agent_sockets": []}}}'):
        contexts.write_text(junk)
        assert cli.find_socket(None) == Path("/run/meshwarden/agent.sock")
    contexts.write_text('{"current": "a", "contexts": {"a": {"agent_sockets": ["/a.sock", "/b.sock"]}}}')
    assert cli.find_socket(None) == Path("/a.sock")
    monkeypatch.setenv("MESHWARDEN_AGENT_SOCKET", "/env.sock")
    assert cli.find_socket(None) == Path("/env.sock")
    assert cli.find_socket(Path("/said.sock")) == Path("/said.sock")


@pytest.mark.parametrize(
    ("command", "code", "fix"),
    [
        ("no-such-command", 127, "not found on PATH"),
        ("{}/none", 127, "there is no such file"),
        ("{}", 126, "it is a directory"),
        ("{}/plain", 126, "chmod +x"),
    ],
)
def test_a_command_that_cannot_be_run(tmp_path: Path, command: str, code: int, fix: str) -> None:
    (tmp_path / "plain").write_text("")
    result = CliRunner().invoke(cli.main, ["exec", "--entry", "web", "--", command.format(tmp_path)])
    assert result.exit_code == code
    assert fix in result.output


@pytest.mark.parametrize(
    ("socket", "reason"), [("none.sock", "No such file"), (".", "refused"), ("a" * 120, "too long")]
)
def test_an_agent_that_is_away(tmp_path: Path, socket: str, reason: str) -> None:
    away = CliRunner().invoke(cli.main, ["status", "--socket", str(tmp_path / socket)])
    assert away.exit_code == 1
    assert reason in away.output
    assert "meshwarden-agent run --config FILE" in away.output
