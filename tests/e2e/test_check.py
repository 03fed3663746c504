"""The checks of `up --check`, rooted in a real OpenBao; `.ci/run` runs them with the embedded authority as well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local.check.run import CHECKS, VAULT_CHECKS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.alone]


def test_every_check_holds_under_vault(start: Callable[..., Any], directory: Path) -> None:
    up = start("vault", "--vault", "--check", "--json")
    status = up.process.wait(800)
    # Progress goes to standard error, which is in the same file here.
    document = json.loads(next(line for line in up.said().splitlines() if line.startswith('{"checks"')))
    assert {check["name"] for check in document["checks"]} == {*CHECKS, *VAULT_CHECKS}
    assert [check for check in document["checks"] if not check["ok"]] == []
    assert document["ok"] is True
    assert status == 0
    assert up.left() == []
