"""What becomes of a rollout next. Pure.

A stage ends no later than `hold` and `wait` after it has begun: promoted, rolled back, or paused for want of calls.
"""

from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

from meshwarden.v1.resources_pb2 import Rollout, RolloutJudge, RolloutStage, RolloutStatus, RolloutVerdict

HOLD: Final = timedelta(minutes=5)


class Step(Enum):
    """What becomes of a rollout."""

    BEGIN = "begin"
    PROMOTE = "promote"
    COMMIT = "commit"
    ROLL_BACK = "roll back"
    PAUSE = "pause"


def hold(stage: RolloutStage) -> timedelta:
    """How long a stage is watched at least."""
    return stage.hold.ToTimedelta() if stage.HasField("hold") else HOLD


def wait(stage: RolloutStage) -> timedelta:
    """How much longer at most."""
    return stage.wait.ToTimedelta() if stage.HasField("wait") else hold(stage)


def next_step(rollout: Rollout, outcome: "RolloutVerdict.Outcome.ValueType", now: datetime) -> Step | None:
    """What becomes of a rollout whose present stage comes to this; None while it stays as it is."""
    status = rollout.status
    if status.phase == RolloutStatus.PENDING:
        return Step.BEGIN
    if status.phase != RolloutStatus.RUNNING:
        return None
    if outcome == RolloutVerdict.BAD:
        return Step.ROLL_BACK
    stage = rollout.spec.stages[status.stage]
    held = now - status.stage_time.ToDatetime(UTC)
    is_held, is_late = held >= hold(stage), held >= hold(stage) + wait(stage)
    onward = Step.COMMIT if status.stage + 1 == len(rollout.spec.stages) else Step.PROMOTE
    if is_held and outcome == RolloutVerdict.GOOD:
        return onward
    if not is_late:
        return None
    if outcome == RolloutVerdict.TOO_FEW:
        return onward if rollout.spec.judge.on_no_traffic == RolloutJudge.PROMOTE else Step.PAUSE
    return Step.ROLL_BACK


def title(rollout: Rollout) -> str:
    """A rollout's stage for people: "stage 2 of 3 (50 %)"."""
    number, stages = rollout.status.stage, rollout.spec.stages
    return f"stage {number + 1} of {len(stages)} ({part(stages[number])})"


def part(stage: RolloutStage) -> str:
    """Which nodes a stage is of, for people."""
    said = stage.WhichOneof("part")
    if said == "percent":
        return f"{stage.percent:g} %"
    return "all" if said == "all" else f"{said} {getattr(stage, str(said))}"
