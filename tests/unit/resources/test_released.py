"""What the last release doesn't know of a resource; and that it finds nothing in its own."""

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from meshwarden.controlplane.resources import released
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.resources.model import KINDS
from meshwarden.v1.resources_pb2 import Endpoint, Resource, RoutePolicy

ROOT = Path(__file__).parents[3]
HEAD = "metadata: {tenant: platform, name: a}\nspec: "


@pytest.fixture(scope="module")
def contract() -> Any:
    spec = spec_from_file_location("contract", ROOT / "proto/contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resource(kind: str, spec: str) -> Resource:
    return parse(f"kind: {kind}\n{HEAD}{spec}", "m")[0].resource


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last release that knew neither Drain, nor SLO's latency, nor a route's `match.headers`, nor HTTP."""
    data = (ROOT / "proto/meshwarden/v1/schema.binpb").read_bytes()
    files, pool = descriptor_pb2.FileDescriptorSet.FromString(data), descriptor_pool.DescriptorPool()
    for file in files.file:
        if file.name == "meshwarden/v1/resources.proto":
            without(file)
        pool.Add(file)
    monkeypatch.setattr(released, "_released", lambda: pool)
    released.may_be_unreleased.cache_clear()
    yield
    released.may_be_unreleased.cache_clear()


def without(file: Any) -> None:
    for number, message in reversed(list(enumerate(file.message_type))):
        if message.name == "Resource":
            keep(message.field, lambda field: field.name != "drain")
        if message.name == "RouteMatch":
            keep(message.field, lambda field: field.name != "headers")
        if message.name == "ServiceSpec":
            keep(message.enum_type[0].value, lambda value: value.name != "HTTP")
        if message.name == "Drain":
            del file.message_type[number]


def keep(items: Any, wanted: Any) -> None:
    for number, item in reversed(list(enumerate(items))):
        if not wanted(item):
            del items[number]


@pytest.mark.usefixtures("earlier")
def test_what_is_newer_is_named() -> None:
    route = "{service: orders, rules: [{split: [{version: v1, weight: 1}]}, {match: {headers: [{name: a, exact: b}]}}]}"
    assert released.unreleased(resource("RoutePolicy", route)) == ("spec.rules[1].match.headers",)
    assert released.unreleased(resource("Drain", "{node: n1}")) == ("kind",)
    assert released.unreleased(resource("Service", "{protocol: HTTP}")) == ("spec.protocol",)


@pytest.mark.usefixtures("earlier")
def test_what_is_not_is_not() -> None:
    assert released.unreleased(resource("RoutePolicy", "{service: o, rules: [{match: {methods: [/a]}}]}")) == ()
    assert released.unreleased(resource("Service", "{protocol: GRPC}")) == ()
    assert released.unreleased(Resource(endpoint=Endpoint())) == ()


@pytest.mark.usefixtures("earlier")
def test_kinds_in_which_nothing_is_newer_are_known() -> None:
    newer = {kind for kind in KINDS if released.may_be_unreleased(kind)}
    assert newer == {"RoutePolicy", "Rollout", "Service", "Drain"}, "a rollout carries route policies"
    assert released.may_be_unreleased("Teapot"), "one that nobody knows"


def test_the_last_releases_schema_is_that_of_the_commit_that_the_changelog_names() -> None:
    said = re.search(
        r"^\[\d+\.\d+\.\d+\]: \S*/commit/([0-9a-f]{40})$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert said is not None
    path = "proto/meshwarden/v1/schema.binpb"
    there = subprocess.run(["git", "show", f"{said[1]}:{path}"], cwd=ROOT, capture_output=True, check=False)
    if there.returncode and subprocess.run(["git", "cat-file", "-e", said[1]], cwd=ROOT, check=False).returncode:
        return  # a copy without the history
    files = descriptor_pb2.FileDescriptorSet.FromString(there.stdout)
    for file in files.file:
        file.ClearField("source_code_info")
    kept = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "proto/meshwarden/v1/released.binpb").read_bytes())
    assert kept == files, f"python proto/contract.py --release {said[1]}"


@pytest.mark.parametrize(
    ("rule", "old", "new", "narrower"),
    [
        ("spec string.max_len", 64, 63, True),
        ("spec string.max_len", 63, 64, False),
        ("spec string.max_len", None, 64, True),
        ("spec string.min_len", 1, 2, True),
        ("spec string.min_len", 2, 1, False),
        ("spec duration.lte", 60.0, 30.0, True),
        ("spec repeated.items.string.pattern", "^a$", "^[ab]$", True),
        ("spec string.in", frozenset("ab"), frozenset("a"), True),
        ("spec string.in", frozenset("a"), frozenset("ab"), False),
        ("spec uint32.not_in", frozenset(), frozenset("1"), True),
        ("spec required", None, True, True),
        ("spec required", True, None, False),
        ("cel some.rule", "a", "b", True),
        ("spec string.example", None, frozenset("a"), False),
    ],
)
def test_a_rule_that_takes_less_is_seen(contract: Any, rule: str, old: Any, new: Any, narrower: bool) -> None:
    assert contract.is_narrower(rule, old, new) is narrower


def test_a_schema_whose_rules_take_less_is_seen(contract: Any) -> None:
    """Names are bounded more tightly, a field of before is demanded, and one that is new may be as it likes."""
    data = (ROOT / "proto/meshwarden/v1/schema.binpb").read_bytes()
    before, now = contract.Schema(data), contract.Schema(data)
    assert contract.narrowed(before, now) == []
    said = now.rules("meshwarden.v1.Metadata")
    lengths = [rule for rule in said if rule.endswith("string.max_len")]
    assert "name string.max_len" in lengths

    class Tighter(contract.Schema):
        def rules(self, name: str) -> dict[str, Any]:
            found: dict[str, Any] = super().rules(name)
            if name == "meshwarden.v1.Metadata":
                found["name string.max_len"] -= 1
                found["tenant required"] = True
                found["brand_new string.max_len"] = 1
            return found

    found = contract.narrowed(before, Tighter(data))
    assert {line.split(":")[0] for line in found} >= {
        "meshwarden.v1.Metadata name string.max_len",
        "meshwarden.v1.Metadata tenant required",
    }


def test_this_trees_schema_breaks_nobody(contract: Any) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "proto/contract.py")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert contract.ACCEPTED is not None
    assert RoutePolicy.DESCRIPTOR.full_name in contract.Schema(contract.RELEASED.read_bytes()).messages
