"""What `diff` and `suggest` print: nothing of what others wrote drives a terminal, and pipelines get an exit code."""

from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format

from meshwarden.controlplane.cli.change import diff as diff_module
from meshwarden.controlplane.cli.change import preview, replay, suggest
from meshwarden.controlplane.cli.failure import Unwanted
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1.preview_service_pb2 import PreviewResponse, ReplayAnswer, SuggestAccessResponse


def told(**fields: Any) -> PreviewResponse:
    return json_format.ParseDict(fields, PreviewResponse())


ALLOWED = {"text": "allowed", "resource": "AccessPolicy p/o", "field": "spec.allow[0]"}
MISSING = {"text": "denied: no", "resource": "AccessPolicy p/o", "field": "spec.allow"}
MANY = "/m0, /m1, /m2, /m3"
DENIAL = {"text": "denied: not this", "resource": "AccessPolicy p/no", "field": "spec.deny[1]"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"kind": "DENIED", "methods": ["/s.O/Get"], "before": ALLOWED, "after": MISSING},
            "a/w -> p/o: /s.O/Get newly denied (AccessPolicy p/o spec.allow[0] no longer allows it)",
        ),
        (
            {"kind": "DENIED", "before": ALLOWED, "after": DENIAL},
            "a/w -> p/o: every method newly denied (AccessPolicy p/no spec.deny[1])",
        ),
        (
            {"kind": "ALLOWED", "before": DENIAL, "after": ALLOWED},
            "a/w -> p/o: every method newly allowed (AccessPolicy p/o spec.allow[0])",
        ),
        (
            {
                "kind": "ROUTED",
                "headers": ["x-beta: 1"],
                "before": {"text": "90% to v1"},
                "after": {"text": "50% to v1"},
            },
            "a/w -> p/o: every method with x-beta: 1 route: 90% to v1 -> 50% to v1",
        ),
        (
            {"kind": "HIDDEN", "before": {"resource": "Service p/o"}},
            "a/w -> p/o: no longer sees it (Service p/o spec.exportTo)",
        ),
        (
            {"kind": "DENIED", "methods": [f"/m{number}" for number in range(9)], "before": ALLOWED, "after": MISSING},
            f"a/w -> p/o: {MANY} and 5 more newly denied (AccessPolicy p/o spec.allow[0] no longer allows it)",
        ),
    ],
)
def test_a_change_is_a_line(change: dict[str, Any], line: str) -> None:
    answer = told(changes=[{"from": ["a/w"], "to": "p/o", **change}], services=1)
    assert next(text for text in preview.lines(answer) if "->" in text) == f"  {line}"


def test_what_is_left_out_and_what_is_not_touched_are_told() -> None:
    answer = told(
        untouched=[{"to": "p/o", "from": ["a/b", "a/c"], "callers": 9}],
        names=[{"tenant": "a", "name": "o", "before": ["p/o"], "after": ["p/o", "q/o"]}],
        services=3,
        otherServices=7,
        omittedServices=2,
        omittedChanges=4,
        reach={"nodes": 1, "connectedNodes": 2, "dataPlanes": 3, "connectedDataPlanes": 4, "atMost": True},
    )
    assert list(preview.lines(answer)) == [
        "for callers",
        "  tenant a: the name o means p/o -> p/o or q/o, which is ambiguous: it resolves no more",
        "  and 4 more changes",
        "  2 services were not looked at: it would have taken too long",
        "not touched: a/b, a/c and 7 more of p/o",
        "not touched: 7 other services",
        "pushed to at most 1 of 2 nodes, 3 of 4 data planes",
    ]


def test_what_ends_with_a_rollout_is_told() -> None:
    change = {"from": ["a/w"], "to": "p/o", "kind": "ROUTED", "before": {"text": "2s"}, "after": {"text": "1s"}}
    ended = {
        "rollout": "Rollout p/r",
        "stage": "stage 1 of 2 (50 %)",
        "policies": ["RoutePolicy p/o"],
        "changes": [change],
        "omittedChanges": 3,
        "reach": {"nodes": 1, "connectedNodes": 1, "dataPlanes": 2, "connectedDataPlanes": 3},
    }
    assert list(preview.lines(told(ended=[ended], otherServices=4))) == [
        "Rollout p/r is under way, in stage 1 of 2 (50 %): its nodes lose RoutePolicy p/o of it",
        "  a/w -> p/o: every method route: 2s -> 1s",
        "  and 3 more changes",
        "  pushed to 1 of 1 nodes, 2 of 3 data planes",
    ]
    both = list(preview.lines(told(ended=[{**ended, "changes": [], "omittedChanges": 0}], services=1)))
    assert both[0] == "for callers nothing changes", "of the mesh as it is"
    assert both[-2:] == ["  for callers nothing changes", "  pushed to 1 of 1 nodes, 2 of 3 data planes"]
    assert diff_module._counts(told(ended=[{**ended, "changes": [change, {**change, "kind": "DENIED"}]}])) == {
        "rerouted": 1,
        "denied": 1,
        "undecidable": 3,
    }


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (
            {
                "resource": "AccessPolicy p/o",
                "field": "spec.allow[0]",
                "byResource": "AccessPolicy p/no",
                "wholly": True,
            },
            "AccessPolicy p/o spec.allow[0] lets nobody in: AccessPolicy p/no spec.deny[0] denies it to a/w",
        ),
        (
            {"resource": "AccessPolicy p/o", "field": "spec.allow[0]", "byResource": "AccessPolicy p/no"},
            "AccessPolicy p/o spec.allow[0] does not let in all that it says: "
            "AccessPolicy p/no spec.deny[0] denies it to a/w",
        ),
        (
            {"resource": "RoutePolicy p/o", "field": "spec.rules[1]", "byResource": "RoutePolicy p/o", "wholly": True},
            "RoutePolicy p/o spec.rules[1] decides of no call: spec.deny[0] comes before it (a/w)",
        ),
    ],
)
def test_a_rule_that_others_overrule_is_a_line(rule: dict[str, Any], line: str) -> None:
    answer = told(overruled=[{"byField": "spec.deny[0]", "from": ["a/w"], **rule}])
    assert [*preview.lines(answer)][1:3] == ["overruled", f"  {line}"]


HOSTILE = "/a\x1b[2J\nkind: Tenant"


def test_no_name_that_somebody_made_up_drives_the_terminal_or_ends_a_comment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rule = {"resource": HOSTILE, "field": HOSTILE, "byResource": HOSTILE, "byField": HOSTILE, "from": [HOSTILE]}
    change = {"from": [HOSTILE], "to": HOSTILE, "kind": "DENIED", "methods": [HOSTILE]}
    preview.show(told(changes=[change], overruled=[rule]))
    one = {"from": HOSTILE, "to": "p/o", "method": HOSTILE, "outcome": "UNDECIDABLE", "needs": HOSTILE, "calls": "1"}
    replay.show(json_format.ParseDict({"changed": [one]}, ReplayAnswer()))
    rule = {"from": [HOSTILE], "methods": [HOSTILE], "calls": "1"}
    policy = {
        "kind": "AccessPolicy",
        "metadata": {"tenant": "p", "name": "o"},
        "spec": {"service": "o", "allow": [{"from": [{"service": "w"}], "methods": ["/a: b", "/#c", "/'d*"]}]},
    }
    service = {"service": "p/o", "warnings": [HOSTILE], "denied": [rule], "rules": [rule], "policy": policy}
    answer = json_format.ParseDict({"services": [service]}, SuggestAccessResponse())
    text = "\n".join(suggest._document(answer, answer.services[0], denied=True))
    out = capsys.readouterr().out + text
    assert "\x1b" not in out
    assert yaml.safe_load(text) == policy, "comments stay comments, and what is proposed stays what it is"
    assert text.count("# Note: ") == 1


class FakeMesh:
    def __enter__(self) -> "FakeMesh":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], 5),
        (["--fail-on", "denied"], 6),
        (["--fail-on", "allowed"], 0),
        (["--replay", "1h"], 5),
        (["--replay", "1h", "--fail-on", "denied"], 0),
        (["--replay", "1h", "--fail-on", "undecidable"], 6),
        (["--replay", "1h", "--fail-on", "denied", "--fail-on", "limited"], 6),
        (["--replay", "59s"], 2),
        (["--replay", "8d"], 2),
        (["--replay", "soon"], 2),
        (["--fail-on", "anything"], 2),
    ],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_exit_codes_are_for_pipelines(args: list[str], code: int, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    located = parse("kind: Tenant\nmetadata: {name: acme}\n", "a.yaml")
    seen = told(changes=[{"from": ["a/w"], "to": "p/o", "kind": "DENIED"}])
    answer = ReplayAnswer(calls=9, limited=3, undecidable=2)
    monkeypatch.setattr(diff_module, "read", lambda files: located)
    monkeypatch.setattr(diff_module.client, "connect_current", FakeMesh)
    monkeypatch.setattr(diff_module, "_resources", lambda mesh, found, refs: [("created", "Tenant acme", [])])
    monkeypatch.setattr(diff_module.preview, "ask", lambda mesh, resources, refs: seen)
    monkeypatch.setattr(diff_module.replay, "ask", lambda mesh, resources, span_s, refs: answer)
    result = CliRunner().invoke(main, ["diff", "-f", "a.yaml", "-o", output, *args])
    assert result.exit_code == code, result.output
    if code == Unwanted.exit_code:
        assert "does what is not wanted" in result.output


@pytest.mark.parametrize(
    "args",
    [["--service", "a"], ["--service", "a/b/c"], ["--since", "8d"], ["--prefix-from", "0"], ["--prefix-from", "257"]],
)
def test_suggest_says_how_it_is_written(args: list[str]) -> None:
    assert CliRunner().invoke(main, ["suggest", "access", *args]).exit_code == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "give manifests by -f, or resources by --delete"),
        (["--delete", "AccessPolicy/orders"], "TENANT/NAME"),
        (["--delete", "Nothing/a/b"], "no kind"),
        (["--delete", ""], "no kind"),
    ],
)
def test_what_is_to_be_compared_must_be_named(args: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff_module.client, "connect_current", FakeMesh)
    result = CliRunner().invoke(main, ["diff", *args])
    assert (result.exit_code, said in result.output) == (2, True), result.output
