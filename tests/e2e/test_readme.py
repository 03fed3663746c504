"""The README's tutorial, as it is printed: its program, its commands, and what they say."""

import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local.port import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.needs("curl")]
README = (Path(__file__).parents[2] / "README.md").read_text()
TUTORIAL = README.partition("## Your own service")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """[(command, the lines that it prints)]."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *said = part.rstrip().splitlines()
            found.append((command, said))
    return found


def pattern(line: str) -> str:
    """What a printed line matches: hashes and revisions differ from run to run."""
    plain = re.escape(re.sub("[0-9a-f]+…", "HASH", line))
    return plain.replace("HASH", "[0-9a-f]+").replace(r"revision\ 11", r"revision\ \d+")


def run(line: str, directory: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs a line of the README."""
    command = ["sh", "-c", line]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_tutorial_goes_as_it_is_printed(start: Callable[..., Any], tmp_path: Path) -> None:
    up = start("a")
    up.wait_until_up()
    port = str(free_port(random.SystemRandom()))
    environment = {**up.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server = tmp_path / "my-server"
    server.write_text(blocks("python")[0].replace("8080", port))
    server.chmod(0o755)
    running = None
    ran = []
    try:
        for command, said in commands():
            ran.append(command.split()[0])
            line = command.replace("8080", port)
            if command.endswith("./my-server"):
                running = subprocess.Popen(shlex.split(line), cwd=tmp_path, env=environment)
                up.until(lambda: "HEALTHY" in up.run("get", "endpoints", "--tenant", "acme", "-o", "yaml").stdout)
                continue
            done = run(line, tmp_path, environment)
            assert done.returncode == 0, done.stderr
            for printed, wanted in zip(done.stdout.splitlines(), said, strict=True):
                assert re.fullmatch(pattern(wanted), printed), (command, printed, wanted)
    finally:
        if running is not None:
            running.kill()
            running.wait()
    assert ran == ["meshwarden", "meshwarden", "meshwarden-agent", "meshwarden-agent", "meshwarden"]
