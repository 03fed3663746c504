from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshwarden.controlplane.audit import chain
from meshwarden.controlplane.cli.main import main

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, chain.Link]:
    link, content = chain.Link(), b""
    for number in range(3):
        link, line = chain.append(link, NOW, "a", {"number": number})
        content += line
    (tmp_path / "log").write_bytes(content)
    return tmp_path / "log", link


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["audit", "verify", *arguments])
    return result.exit_code, result.output


def test_a_file_is_verified_without_a_mesh(log: tuple[Path, chain.Link]) -> None:
    path, end = log
    assert run("--file", str(path)) == (0, f"whole\t3 events\tends 3:{end.hash}\n")
    assert run("--file", str(path), "--end", f"3:{end.hash}")[0] == 0
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert run("--file", str(path))[0] == 0
    code, said = run("--file", str(path), "--end", f"3:{end.hash}")
    assert code == 1
    assert "the newest were cut off" in said
    path.write_bytes(b"noise\n")
    code, said = run("--file", str(path))
    assert code == 1
    assert "line 1" in said


@pytest.mark.parametrize("end", ["", "3", "3:", "x:" + "0" * 64, "-1:" + "0" * 64, "3:" + "0" * 63, "٣:" + "0" * 64])
def test_an_end_that_is_none_is_refused(log: tuple[Path, chain.Link], end: str) -> None:
    code, said = run("--file", str(log[0]), "--end", end)
    assert code == 2
    assert "SEQ:HASH" in said


def test_an_end_goes_with_a_file() -> None:
    assert run("--end", "3:" + "0" * 64)[0] == 2
    assert run("--file", "/nowhere")[0] == 2
