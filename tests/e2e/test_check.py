"""The checks of `up --check`, with OpenBao as the root, away all the time; `.ci/run` runs them with our own as well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local.check.run import checks_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.alone]


def test_every_check_holds_while_vault_is_away(start: Callable[..., Any], directory: Path) -> None:
    up = start("vault", "--vault", "--vault-away", "--check", "--json")
    status = up.process.wait(800)
    # Progress goes to standard error, which is in the same file here.
    document = json.loads(next(line for line in up.said().splitlines() if line.startswith('{"checks"')))
    names = [check["name"] for check in document["checks"]]
    assert names == list(checks_of(vault=True, vault_away=True))
    assert (names[0], names[-1]) == ("vault-away", "vault-back")
    assert [check for check in document["checks"] if not check["ok"]] == []
    assert document["ok"] is True
    assert status == 0
    assert up.left() == []
