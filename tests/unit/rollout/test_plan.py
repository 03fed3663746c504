"""What becomes of a rollout next, and what its status is then."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.rollout.plan import Step, hold, next_step, part, title, wait
from meshwarden.controlplane.rollout.status import paused, resumed, stepped
from meshwarden.v1.resources_pb2 import Rollout, RolloutStage, RolloutStatus, RolloutVerdict

NOW = datetime(2026, 1, 2, tzinfo=UTC)
GOOD, BAD, TOO_FEW, UNSURE = (
    RolloutVerdict.GOOD,
    RolloutVerdict.BAD,
    RolloutVerdict.TOO_FEW,
    RolloutVerdict.UNSURE,
)


def rollout(stage: int = 0, phase: str = "RUNNING", **judge: Any) -> Rollout:
    stages = [{"percent": 10, "hold": "10s", "wait": "20s"}, {"zone": "a", "hold": "10s"}, {"all": True}]
    made = json_format.ParseDict(
        {
            "kind": "Rollout",
            "metadata": {"tenant": "shop", "name": "r", "record": {"revision": 7}},
            "spec": {"stages": stages, "judge": judge},
            "status": {"phase": phase, "stage": stage},
        },
        Rollout(),
    )
    made.status.stage_time.FromDatetime(NOW)
    return made


@pytest.mark.parametrize(
    ("after_s", "outcome", "wanted"),
    [
        (0, GOOD, None),
        (9, GOOD, None),
        (10, GOOD, Step.PROMOTE),
        (0, BAD, Step.ROLL_BACK),
        (29, BAD, Step.ROLL_BACK),
        (29, TOO_FEW, None),
        (30, TOO_FEW, Step.PAUSE),
        (29, UNSURE, None),
        (30, UNSURE, Step.ROLL_BACK),
    ],
)
def test_a_stage_ends_by_its_calls_or_by_its_time(after_s: int, outcome: int, wanted: Step | None) -> None:
    assert next_step(rollout(), outcome, NOW + timedelta(seconds=after_s)) is wanted


def test_a_stage_without_traffic_may_be_promoted_and_the_last_one_is_committed() -> None:
    late = NOW + timedelta(days=1)
    assert next_step(rollout(onNoTraffic="PROMOTE"), TOO_FEW, late) is Step.PROMOTE
    assert next_step(rollout(2, onNoTraffic="PROMOTE"), TOO_FEW, late) is Step.COMMIT
    assert next_step(rollout(2), GOOD, late) is Step.COMMIT
    assert next_step(rollout(2), GOOD, NOW + timedelta(seconds=299)) is None, "five minutes by default"


@given(
    st.sampled_from(["PAUSED", "COMMITTED", "ROLLED_BACK", "ABORTED"]), st.sampled_from([GOOD, BAD, TOO_FEW, UNSURE])
)
def test_what_does_not_run_stays_as_it_is(phase: str, outcome: int) -> None:
    assert next_step(rollout(phase=phase), outcome, NOW + timedelta(days=9)) is None


@given(st.integers(0, 2), st.integers(0, 2000), st.sampled_from([GOOD, BAD, TOO_FEW, UNSURE]))
def test_no_stage_lasts_longer_than_it_says(stage: int, after_s: int, outcome: int) -> None:
    made = rollout(stage)
    said = made.spec.stages[stage]
    step = next_step(made, outcome, NOW + timedelta(seconds=after_s))
    assert (step is not None) or after_s < (hold(said) + wait(said)).total_seconds()


def test_a_rollout_goes_through_its_stages_to_the_end() -> None:
    made, verdict = rollout(phase="PENDING"), RolloutVerdict(outcome=GOOD, stage=0)
    assert next_step(made, TOO_FEW, NOW) is Step.BEGIN
    made = stepped(Step.BEGIN, made, verdict, 5, NOW)
    assert (made.status.phase, made.status.stage, made.status.hash_below) == (RolloutStatus.RUNNING, 0, 5)
    assert made.status.reason == "stage 1 of 3 (10 %) begins"
    made.metadata.record.revision = 8
    made = stepped(Step.PROMOTE, made, verdict, 6, NOW + timedelta(seconds=10))
    assert (made.status.stage, made.status.hash_below, made.status.stage_revision) == (1, 6, 0)
    assert made.status.stage_time.ToDatetime(UTC) == NOW + timedelta(seconds=10)
    assert made.status.reason == "stage 2 of 3 (zone a) begins: stage 1 of 3 (10 %) is good"
    done = stepped(Step.COMMIT, made, RolloutVerdict(outcome=GOOD, stage=1), 6, NOW)
    assert (done.status.phase, done.status.end_time.ToDatetime(UTC)) == (RolloutStatus.COMMITTED, NOW)
    assert [one.stage for one in done.status.verdicts] == [0, 1]
    back = stepped(Step.ROLL_BACK, made, RolloutVerdict(outcome=BAD, stage=1), 6, NOW)
    assert back.status.phase == RolloutStatus.ROLLED_BACK
    assert back.status.reason.startswith("stage 2 of 3 (zone a) is bad: ")


def test_a_pause_keeps_from_when_nodes_have_the_stage_and_it_is_held_anew_after_it() -> None:
    made = rollout()
    paused(made, NOW + timedelta(seconds=5))
    assert (made.status.phase, made.status.stage_revision) == (RolloutStatus.PAUSED, 7)
    made.metadata.record.revision = 9
    resumed(made, NOW + timedelta(seconds=60))
    assert (made.status.phase, made.status.stage_revision) == (RolloutStatus.RUNNING, 7)
    assert next_step(made, GOOD, NOW + timedelta(seconds=69)) is None
    assert next_step(made, GOOD, NOW + timedelta(seconds=70)) is Step.PROMOTE


def test_stages_have_names_for_people() -> None:
    assert part(RolloutStage(percent=2.5)) == "2.5 %"
    assert part(RolloutStage(region="eu")) == "region eu"
    assert part(RolloutStage(all=True)) == "all"
    assert title(rollout(1)) == "stage 2 of 3 (zone a)"
