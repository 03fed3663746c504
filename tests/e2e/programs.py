"""Programs that tests run as workloads of a mesh, and what they ask the sample's probe."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


class Programs:
    """Programs under the agents of a mesh; `end` ends them."""

    def __init__(self, up: Any, directory: Path) -> None:
        self.up, self.directory = up, directory
        self.programs: list[subprocess.Popen[str]] = []

    def start(self, node: str, entry: str, *command: str) -> "subprocess.Popen[str]":
        sockets = {agent["node"]: agent["agent_socket"] for agent in self.up.up_json["agents"]}
        run = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", sockets[node], "--entry", entry, "--"]
        with (self.directory / f"{entry.replace('/', '-')}-{node}.log").open("ab") as log:
            program = subprocess.Popen(
                [*run, sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.programs.append(program)
        return program

    def end(self) -> None:
        for program in self.programs:
            program.kill()
            program.communicate()


def ask(probe: "subprocess.Popen[str]", **request: Any) -> dict[str, Any]:
    assert probe.stdin is not None
    assert probe.stdout is not None
    probe.stdin.write(json.dumps(request) + "\n")
    probe.stdin.flush()
    answer: dict[str, Any] = json.loads(probe.stdout.readline())
    assert "error" not in answer, answer
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
