"""The last release, as CHANGELOG.md names it, with an environment of its own."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".upgrade"
_REFERENCE = re.compile(r"^\[(\d+\.\d+\.\d+)\]: \S*/commit/([0-9a-f]{40})$", re.MULTILINE)
# Commands of another tree must not find this one's modules, nor make's own variables.
_FOREIGN = ("PYTHON", "MAKE", "MFLAGS", "VIRTUAL_ENV", "GIT_")


@dataclass(frozen=True)
class Release:
    """A version of Meshwarden that can be run.

    Attributes:
        name: "0.0.9".
        python: whose environment has it.
        tree: its files.
    """

    name: str
    python: str
    tree: Path


NEW = Release("this tree", sys.executable, ROOT)


def environment() -> dict[str, str]:
    """The environment for commands of another tree."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


def named() -> tuple[str, str]:
    """The newest released version of CHANGELOG.md, and its commit."""
    found = _REFERENCE.search((ROOT / "CHANGELOG.md").read_text())
    assert found is not None, "CHANGELOG.md names no commit: [0.0.9]: ../../commit/<40 digits>"
    return found[1], found[2]


def last_release() -> Release:
    """Its tree, as git has it, with its pinned dependencies; made once and kept in .upgrade."""
    name, commit = named()
    tree = KEPT / commit[:12]
    if not (tree / "Makefile").exists():
        tree.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
        assert packed.returncode == 0, (
            f"{packed.stderr.decode()}: version {name} is commit {commit}; has this clone its whole history?"
        )
        subprocess.run(["tar", "-x", "-C", str(tree)], input=packed.stdout, check=True)
    subprocess.run(
        ["make", "--silent", ".venv/.mesh", f"PYTHON={sys.executable}"], cwd=tree, env=environment(), check=True
    )
    return Release(name, str(tree / ".venv/bin/python"), tree)
