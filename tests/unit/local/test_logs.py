"""Logs of several parts, merged by time, and what carries a trace id."""

from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.local import context
from meshwarden.controlplane.local.logs import Tail, merged

ID = "0123456789abcdef0123456789abcdef"
OURS = '{{"event": "{}", "timestamp": "2026-03-01T12:00:0{}.000000Z"{}}}\n'


def local(second: int) -> str:
    """A time as `logging` writes it, in this machine's zone."""
    moment = datetime.fromisoformat(f"2026-03-01T12:00:0{second}+00:00").astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S},500"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    logs = tmp_path / "logs"
    logs.mkdir()
    carried = f', "trace_id": "{ID}"'
    (logs / "server.log").write_text(OURS.format("signed", 3, carried) + OURS.format("other", 4, ""))
    (logs / "agent-n1.log").write_text(OURS.format("registered", 1, carried) + OURS.format("health", 2, ""))
    (logs / "web.log").write_text(
        f"{local(2)} WARNING acme/web may not call (trace {ID})\nTraceback:\n  File\n{local(3)} INFO fine\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    context.put("m", context.Context("a", "b", "c", "d", str(tmp_path)))
    return logs


@pytest.mark.usefixtures("directory")
def test_a_trace_is_followed_through_all_logs_by_time() -> None:
    said = CliRunner().invoke(main, ["logs", "--trace", ID.upper()])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert [line.split()[0] for line in lines] == ["agent-n1", "web", "web", "web", "server"]
    assert "registered" in lines[0]
    assert lines[1].endswith(f"may not call (trace {ID})")
    assert lines[3].endswith("  File")


@pytest.mark.usefixtures("directory")
def test_logs_of_a_node_and_a_workload_are_merged() -> None:
    said = CliRunner().invoke(main, ["logs", "--node", "n1", "--workload", "acme/web"])
    assert [line.split()[0] for line in said.output.splitlines()] == ["agent-n1", "agent-n1", *["web"] * 4]
    one = CliRunner().invoke(main, ["logs", "--workload", "web", "-n", "1"])
    assert one.output == f"{local(3)} INFO fine\n"


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize("given", ["abc", "x" * 32, f"{ID} ", ""])
def test_what_is_no_trace_id_is_refused(given: str) -> None:
    assert CliRunner().invoke(main, ["logs", "--trace", given]).exit_code == 2


@pytest.mark.usefixtures("directory")
def test_a_name_that_is_no_log_is_refused() -> None:
    for arguments in (["--node", "../x"], ["--workload", "acme/../../x"], ["nobody"]):
        assert CliRunner().invoke(main, ["logs", *arguments]).exit_code == 4


def test_a_line_is_shown_once_it_is_whole(directory: Path) -> None:
    tail = Tail(directory / "web.log")
    assert len(merged([tail])) == 4
    with open(directory / "web.log", "a") as file:
        file.write(f"{local(5)} half")
        file.flush()
        assert merged([tail]) == []
        file.write(" done\n")
        file.flush()
        assert [line.text for line in merged([tail])] == [f"{local(5)} half done"]
    (directory / "web.log").unlink()
    assert tail.is_gone()
    tail.close()


@pytest.mark.parametrize(
    "hostile",
    [b"\xff\xfe\n", b"{" * 70_000 + b"\n", b'{"timestamp": 7}\n', b"9999-99-99 99:99:99,999 x\n", b"x" * 200_000],
    ids=["not utf-8", "deep", "no time", "no date", "no end"],
)
def test_no_line_ends_the_reading(tmp_path: Path, hostile: bytes) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(hostile + b"\n" + OURS.format("after", 1, "").encode())
    tail = Tail(path)
    assert merged([tail])[-1].text.startswith('{"event": "after"')
    tail.close()
