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


def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    run = CliRunner()
    missing = run.invoke(cli.main, ["exec", "--entry", "web", "--", "no-such-command"])
    assert missing.exit_code == 127
    (tmp_path / "file").write_text("")
    plain = run.invoke(cli.main, ["exec", "--entry", "web", "--", str(tmp_path / "file")])
    assert plain.exit_code == 126
    away = run.invoke(cli.main, ["status", "--socket", str(tmp_path / "none.sock")])
    assert away.exit_code == 1
    assert "meshwarden-agent run --config FILE" in away.output
