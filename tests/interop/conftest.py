"""The Go program that these suites run, built once; where it can't be they are left out and say why."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_choice import opened
from tests.interop.world import Go

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of main.go, with its modules as locked."""
    if shutil.which("go") is None:
        pytest.skip("there is no Go toolchain here")
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    run: dict[str, Any] = {
        "cwd": HERE,
        "env": environment,
        "capture_output": True,
        "text": True,
        "timeout": 1500,
        "check": False,
    }
    fetched = subprocess.run(["go", "mod", "download"], **run)
    if fetched.returncode:
        pytest.skip(f"Go's modules can't be had here: {fetched.stderr.strip()[-500:]}")
    built = tmp_path_factory.mktemp("go") / "peer"
    made = subprocess.run(["go", "build", "-o", str(built), "."], **run)
    assert made.returncode == 0, made.stderr
    return str(built)


@pytest.fixture
async def world(tmp_path: Path, peer: str) -> AsyncIterator[Go]:
    """A mesh of Go's own clients and servers."""
    async with opened(Go(tmp_path, peer)) as made:
        yield made
