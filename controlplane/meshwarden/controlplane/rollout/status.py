"""What a rollout's status becomes by each step, and why, for people. Pure."""

from datetime import datetime
from typing import Any, Final

from meshwarden.controlplane.history.record import Changed
from meshwarden.controlplane.policy.stage import changes_of
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import normalise, wrap
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.rollout.plan import Step, title
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Rollout, RolloutComparison, RolloutStatus, RolloutVerdict, SLOSpec

EVENTS: Final = {
    Step.BEGIN: "begin",
    Step.PROMOTE: "promote",
    Step.COMMIT: "commit",
    Step.ROLL_BACK: "roll_back",
    Step.PAUSE: "pause",
}
"""The names of steps, for the audit log and in traces."""


def stepped(step: Step, rollout: Rollout, verdict: RolloutVerdict, hash_below: int, now: datetime) -> Rollout:
    """A rollout after a step; its status says why.

    Args:
        step: what becomes of it.
        rollout: as it is.
        verdict: what its present stage comes to.
        hash_below: of the stage that it is in after that.
        now: the present, aware.
    """
    after = Rollout()
    after.CopyFrom(rollout)
    status = after.status
    if step is Step.PAUSE:
        paused(after, now)
        status.reason = f"{title(rollout)} has too few calls to be judged by: {worst_of(verdict)}"
        return after
    if step is not Step.BEGIN:
        status.verdicts.append(verdict)
    if step in (Step.BEGIN, Step.PROMOTE):
        why = "" if step is Step.BEGIN else f": {title(rollout)} is {_WORD[verdict.outcome]}"
        status.stage = 0 if step is Step.BEGIN else rollout.status.stage + 1
        status.phase, status.hash_below, status.stage_revision = RolloutStatus.RUNNING, hash_below, 0
        status.stage_time.FromDatetime(now)
        status.reason = f"{title(after)} begins{why}"
        return after
    ended(after, RolloutStatus.COMMITTED if step is Step.COMMIT else RolloutStatus.ROLLED_BACK, now)
    if step is Step.COMMIT:
        status.reason = f"{title(rollout)} is {_WORD[verdict.outcome]}: committed"
    else:
        status.reason = f"{title(rollout)} is {_WORD[verdict.outcome]}: {worst_of(verdict)}"
    return after


def impossible(rollout: Rollout, verdict: RolloutVerdict, fault: FieldFault, now: datetime) -> Rollout:
    """A rollout whose changes can't be made any more, since something that they need is gone."""
    after = Rollout()
    after.CopyFrom(rollout)
    after.status.verdicts.append(verdict)
    ended(after, RolloutStatus.ROLLED_BACK, now)
    after.status.reason = f"its changes can't be committed any more: {fault.field}: {fault.message}"
    return after


def paused(rollout: Rollout, now: datetime) -> None:
    """Pauses a rollout that runs."""
    keep_revision(rollout)
    rollout.status.phase = RolloutStatus.PAUSED
    rollout.status.pause_time.FromDatetime(now)


def resumed(rollout: Rollout, now: datetime) -> None:
    """Has a paused rollout go on: its stage is held anew."""
    keep_revision(rollout)
    rollout.status.phase = RolloutStatus.RUNNING
    rollout.status.ClearField("pause_time")
    rollout.status.stage_time.FromDatetime(now)


def ended(rollout: Rollout, phase: "RolloutStatus.Phase.ValueType", now: datetime) -> None:
    """Ends a rollout."""
    keep_revision(rollout)
    rollout.status.phase = phase
    rollout.status.ClearField("pause_time")
    rollout.status.end_time.FromDatetime(now)


def keep_revision(rollout: Rollout) -> None:
    """Notes from which revision on nodes have the stage, before the record gets another one."""
    rollout.status.stage_revision = rollout.status.stage_revision or rollout.metadata.record.revision


def committed(rollout: Rollout, view: View) -> list[Changed]:
    """The changes of a rollout as changes of the resources themselves; none of what is so already."""
    found = []
    for key, message in changes_of(rollout):
        present: Any = view.find(*key)
        before = wrap(present) if present is not None else None
        after = normalise(wrap(message)) if message is not None else None
        if (normalise(before) if before is not None else None) != after:
            found.append(Changed(ResourceRef(kind=key.kind, tenant=key.tenant, name=key.name), before, after))
    return found


def worst_of(verdict: RolloutVerdict) -> str:
    """The comparison that a verdict rests on, for people."""
    found = [one for one in verdict.comparisons if one.outcome == verdict.outcome]
    return said(found[0]) if found else "no calls of any service concerned"


def said(one: RolloutComparison) -> str:
    """A comparison for people."""
    by = "calls to" if one.side == SLOSpec.CALLER else "calls at"
    slo = f"SLO {one.slo}" if one.slo else "99 % availability"
    changed = f"{one.changed_bad} of {one.changed_calls} {by} {one.service} are bad with the change"
    unchanged = f"{one.unchanged_bad} of {one.unchanged_calls} without it"
    return f"{changed}, {unchanged}; {slo} allows {one.allowed:.3%}"


_WORD: Final = {
    RolloutVerdict.OUTCOME_UNSPECIFIED: "not judged",
    RolloutVerdict.GOOD: "good",
    RolloutVerdict.BAD: "bad",
    RolloutVerdict.TOO_FEW: "without calls to judge it by",
    RolloutVerdict.UNSURE: "in doubt",
}
