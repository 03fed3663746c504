"""docs/resources.md is as generated, and every example in it holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.resources.model import KINDS, kind_of
from meshwarden.controlplane.resources.reference import reference_faults
from meshwarden.controlplane.resources.view import View

DOCS = Path(__file__).parents[3] / "docs"


def test_the_reference_is_as_generated() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_examples_are_one_batch_of_every_kind() -> None:
    texts = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "resources.md").read_text(), re.DOTALL | re.MULTILINE)
    batch = [located.resource for located in parse("---\n".join(texts), "resources.md")]
    assert set(map(kind_of, batch)) == set(KINDS)
    assert reference_faults(batch, View()) == []


@pytest.mark.parametrize("page", ["policy.md", "rollout.md"])
def test_the_examples_of_a_page_hold(page: str) -> None:
    texts = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert texts
    for text in texts:
        assert parse(text, page)
