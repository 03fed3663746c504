"""What `way-back` prints, and how it ends."""

import contextlib
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshwarden.controlplane.cli import client, way_back
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1.resource_service_pb2 import ListRequest, ListResponse
from meshwarden.v1.resources_pb2 import Resource

MADE = {
    "AccessPolicy": "{service: orders, allow: [{from: [{service: web}]}]}",
    "Drain": "{node: n1}",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Lists each kind one by one; the last release knows no Drain, and no AccessPolicy's second field "x"."""

    def listed(request: ListRequest, timeout: float) -> ListResponse:
        text = f"kind: {request.kind}\nmetadata: {{tenant: platform, name: NAME}}\nspec: {MADE[request.kind]}"
        page = int(request.page_token or 1)
        found = [parse(text.replace("NAME", f"a{page}"), "m")[0].resource]
        return ListResponse(resources=found, next_page_token=str(page + 1) if page < 2 else "")

    def go(unreleased: Callable[[Resource], tuple[str, ...]], *arguments: str) -> Result:
        mesh = SimpleNamespace(resource=SimpleNamespace(List=listed))
        monkeypatch.setattr(client, "connect_current", lambda: contextlib.nullcontext(mesh))
        monkeypatch.setattr(way_back, "may_be_unreleased", MADE.__contains__)
        monkeypatch.setattr(way_back, "unreleased", unreleased)
        return CliRunner().invoke(main, ["way-back", *arguments])

    return go


def newer(resource: Resource) -> tuple[str, ...]:
    return ("kind",) if resource.HasField("drain") else ("spec.deny", "spec.dryRun")


def test_it_lists_what_is_in_the_way(run: Any) -> None:
    done = run(newer)
    assert done.exit_code == 6
    assert [row.split("\t") for row in done.stdout.splitlines()] == [
        ["RESOURCE", "THE LAST RELEASE KNOWS NO"],
        *(["AccessPolicy platform/" + name, field] for name in ("a1", "a2") for field in ("spec.deny", "spec.dryRun")),
        *(["Drain platform/" + name, "all of it"] for name in ("a1", "a2")),
    ]
    said: Any = json.loads(run(newer, "-o", "json").stdout)
    assert said[-1] == {"resource": "Drain platform/a2", "field": "kind"}


def test_with_nothing_in_the_way_it_ends_well(run: Any) -> None:
    done = run(lambda _: ())
    assert (done.exit_code, done.stdout) == (0, "nothing: the last release reads all that is stored\n")
    assert json.loads(run(lambda _: (), "-o", "json").stdout) == []
