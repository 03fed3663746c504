"""What `rollout` prints, and how it ends."""

import contextlib
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client
from meshwarden.controlplane.cli.change import rollout as module
from meshwarden.controlplane.cli.main import main
from meshwarden.v1 import rollout_service_pb2 as v1
from meshwarden.v1.resources_pb2 import RolloutStatus, RolloutVerdict

RUNNING, COMMITTED, ROLLED_BACK = RolloutStatus.RUNNING, RolloutStatus.COMMITTED, RolloutStatus.ROLLED_BACK


def verdict(stage: int, outcome: "RolloutVerdict.Outcome.ValueType", nodes: int) -> RolloutVerdict:
    made = RolloutVerdict(stage=stage, outcome=outcome, nodes=nodes, nodes_concerned=10)
    made.comparisons.add(
        service="platform/orders",
        side="CALLER",
        slo="platform/orders\x1b[2J",
        outcome=outcome,
        changed_calls=200,
        changed_bad=20,
        unchanged_calls=1800,
        unchanged_bad=1,
        allowed=0.01,
        changed_at_least=0.05,
        unchanged_at_most=0.007,
    )
    return made


def state(phase: "RolloutStatus.Phase.ValueType" = RUNNING, reason: str = "why\x1b[2J") -> v1.RolloutState:
    made = v1.RolloutState(trace_id="ab" * 16, nodes_taken=4)
    rollout = made.rollout
    rollout.metadata.tenant, rollout.metadata.name = "platform", "r"
    for percent in (10.0, 50.0):
        rollout.spec.stages.add(percent=percent)
    rollout.spec.stages.add(all=True)
    rollout.status.phase, rollout.status.stage, rollout.status.reason = phase, 1, reason
    rollout.status.stage_time.FromDatetime(utc_now() - timedelta(seconds=42))
    rollout.status.verdicts.append(verdict(0, RolloutVerdict.GOOD, 1))
    if phase == RUNNING:
        made.now.CopyFrom(verdict(1, RolloutVerdict.TOO_FEW, 5))
    else:
        rollout.status.verdicts.append(verdict(1, RolloutVerdict.BAD, 5))
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def go(methods: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        mesh = SimpleNamespace(rollout=SimpleNamespace(**methods))
        monkeypatch.setattr(client, "connect_current", lambda: contextlib.nullcontext(mesh))
        done = CliRunner().invoke(main, ["rollout", *arguments])
        return done.exit_code, done.stdout, done.stderr

    return go


def listing(*states: v1.RolloutState) -> dict[str, Any]:
    told = list(states)

    def answer(request: v1.ListRolloutsRequest, timeout: float) -> v1.ListRolloutsResponse:
        return v1.ListRolloutsResponse(rollouts=[told.pop(0) if len(told) > 1 else told[0]] if told else [])

    return {"ListRollouts": answer}


def test_status_draws_how_far_each_stage_has_come_and_what_it_is_judged_by(run: Any) -> None:
    code, out, _ = run(listing(state()), "status", "platform/r")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "platform/r\tRUNNING\twhy�[2J")
    assert lines[1] == "  ✓ 10 %          ██░░░░░░░░░░░░░░░░░░  1 of 10 nodes  good  20 of 200 calls bad"
    assert lines[2] == "  ▶ 50 %          ██████████░░░░░░░░░░  5 of 10 nodes  too few  20 of 200 calls bad"
    assert lines[3] == "  · all           ░░░░░░░░░░░░░░░░░░░░"
    assert lines[4].startswith("  held for 4")
    assert lines[4].endswith(" s of 300 s, at most 600 s; 4 of 5 nodes have taken it")
    assert lines[6].split("\t") == [
        *("platform/orders", "callers", "platform/orders�[2J", "1.000%", "20 of 200 (10.00%)", "1 of 1800 (0.06%)"),
        *(">= 5.00% with it, <= 0.70% without", "too few"),
    ]
    assert run(listing(state()), "status", "-o", "json")[0] == 0
    assert run(listing(), "status")[2] == "no rollouts\n"
    assert run(listing(), "status", "platform/r")[0] == 4
    assert run(listing(), "status", "r")[0] == 2


def test_what_is_over_shows_where_it_ended(run: Any) -> None:
    _, out, _ = run(listing(state(ROLLED_BACK)), "status")
    assert "  ✗ 50 %          ██████████░░░░░░░░░░  5 of 10 nodes  bad  20 of 200 calls bad" in out.splitlines()


def test_watch_says_what_changes_and_ends_as_the_rollout_does(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    code, out, _ = run(listing(state(), state(), state(COMMITTED)), "watch", "platform/r")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "RUNNING  stage 2 of 3 (50 %)  5 of 10 nodes  too few" in out
    code, _, err = run(listing(state(ROLLED_BACK, "bad\x1b")), "watch", "platform/r")
    assert (code, err) == (1, "error: ROLLED_BACK: bad�\n")
    assert run(listing(state()), "watch", "platform/r", "--timeout", "1s")[0] == 7


@pytest.mark.parametrize("action", ["pause", "resume", "abort"])
def test_a_word_to_a_rollout_names_it_and_why(run: Any, action: str) -> None:
    asked: list[v1.ChangeRolloutRequest] = []

    def change(request: v1.ChangeRolloutRequest, timeout: float) -> v1.ChangeRolloutResponse:
        asked.append(request)
        return v1.ChangeRolloutResponse(revision=9, rollout=state().rollout)

    code, out, err = run({"ChangeRollout": change}, action, "platform/r", "--reason", "so")
    assert (code, out, err) == (0, "RUNNING\tRollout platform/r\n", "revision 9\n")
    assert (asked[0].ref.kind, asked[0].ref.name, asked[0].reason) == ("Rollout", "r", "so")
    assert v1.ChangeRolloutRequest.Action.Name(asked[0].action) == action.upper()


def test_a_rollout_that_concerns_no_node_says_so(run: Any) -> None:
    alone = state()
    alone.now.nodes = alone.now.nodes_concerned = 0
    assert "no node that it concerns has joined" in run(listing(alone), "status")[1]
    assert "of 0 nodes" not in run(listing(alone), "status")[1]
