"""An unmodified Node client beside the Python ones: same names, same certificates, same policies."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.policy.neutral import Caller

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "tests" / "e2e" / "node"
PROTO = ROOT / "examples" / "meshwarden" / "examples" / "orders" / "orders.proto"

pytestmark = [pytest.mark.needs("node", "npm")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The client's directory, with its packages as locked."""
    if (CLIENT / "node_modules").is_dir():  # `make test` has installed them
        yield CLIENT
        return
    directory = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.js"):
        shutil.copy(CLIENT / name, directory)
    # The packages install alike wherever npm is told to get them: the lock names no address.
    command = ["npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=directory, check=True, timeout=200)
    yield directory
    shutil.rmtree(directory)


def asking(mesh: Any, client: Path, service: str) -> Callable[..., dict[str, Any]]:
    """Starts the client as a workload of acme and returns what asks it."""
    calling = mesh.workload("acme", service)
    program = mesh.run(["node", str(client / "client.js"), str(PROTO)], calling.variables)

    def ask(**fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = program.send(json.dumps(fields))
        return answer

    return ask


def test_node_calls_by_name_with_its_own_identity(mesh: Any, client: Path) -> None:
    mesh.orders()
    answer = asking(mesh, client, "web")(count=20, concurrency=4, metadata={"x-tenant": "globex"})
    assert answer["codes"] == {"OK": 20}, answer
    assert answer["versions"] == {"v1": 20}
    assert answer["tenants"] == {"acme": 20}


def test_node_is_denied_granted_and_denied_again_on_one_channel(
    mesh: Any, client: Path, until: Callable[..., Any]
) -> None:
    mesh.orders()
    ask = asking(mesh, client, "intruder")
    assert ask(count=3)["codes"] == {"PERMISSION_DENIED": 3}
    mesh.callers = {Caller("acme", "intruder")}
    mesh.push()
    until(lambda: ask()["codes"] == {"OK": 1}, "granted")
    mesh.callers = set()
    mesh.push()
    until(lambda: ask()["codes"] == {"PERMISSION_DENIED": 1}, "revoked")


def test_node_says_what_is_wrong_with_a_line_and_goes_on(mesh: Any, client: Path) -> None:
    mesh.orders()
    ask = asking(mesh, client, "web")
    assert "error" in ask(method="Put")
    assert ask()["codes"] == {"OK": 1}


def test_the_lock_names_no_registry() -> None:
    lock = (CLIENT / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "://" not in "".join(line for line in lock.splitlines() if '"url"' not in line)
    assert os.environ.get("HOME", "/root") not in lock
