"""Whether a change does harm: calls of the nodes that have it against those of the nodes that don't, and the SLO. Pure.

A change is BAD if it surely makes more calls fail than the SLO allows for, and more than fail without it: if the lower
bound of its share of bad calls is above both. All bounds of a stage are wrong with a probability of ALPHA at most,
together and however often one looks (`bound`); so a change that does no harm is found bad in one stage of a hundred.
That counts calls that fail for reasons of their own; where one outage fails many at once it is found sooner.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from meshwarden.controlplane.rollout import bound
from meshwarden.v1.resources_pb2 import RolloutJudge, RolloutVerdict

ALPHA: Final = 0.01
LEAST_BAD: Final = 5
"""Fewer bad calls prove nothing, whatever their share: one fault may fail a few at once."""
MIN_CALLS: Final = 100
_WORST: Final = (RolloutVerdict.BAD, RolloutVerdict.UNSURE, RolloutVerdict.TOO_FEW, RolloutVerdict.GOOD)


@dataclass(frozen=True)
class Sample:
    """Calls, and how many of them are bad."""

    calls: int = 0
    bad: int = 0

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.calls + other.calls, self.bad + other.bad)


NONE: Final = Sample()


@dataclass(frozen=True)
class Finding:
    """What a comparison comes to; the numbers are shares of bad calls.

    Attributes:
        outcome: of `RolloutVerdict.Outcome`.
        at_least: with the change, surely; 0 where nothing is known.
        at_most: without the change, surely; 1 where too little is known to go by.
    """

    outcome: "RolloutVerdict.Outcome.ValueType"
    at_least: float
    at_most: float


def compare(changed: Sample, unchanged: Sample, allowed: float, min_calls: int, comparisons: int = 1) -> Finding:
    """Compares calls with a change and without it.

    Args:
        changed: those with it.
        unchanged: those without; fewer than `min_calls` say nothing, and the SLO alone does.
        allowed: the share that may be bad, 0 to 1.
        min_calls: how many calls it takes to find the change good.
        comparisons: how many there are in the same stage.
    """
    alpha = ALPHA / (2 * comparisons)
    at_least = bound.at_least(changed.calls, changed.bad, alpha)
    is_known = unchanged.calls >= max(1, min_calls)
    at_most = bound.at_most(unchanged.calls, unchanged.bad, alpha) if is_known else 1.0
    if changed.bad >= LEAST_BAD and at_least > allowed and (not is_known or at_least > at_most):
        outcome = RolloutVerdict.BAD
    elif changed.calls < min_calls:
        outcome = RolloutVerdict.TOO_FEW
    else:
        outcome = RolloutVerdict.UNSURE if changed.bad > allowed * changed.calls else RolloutVerdict.GOOD
    return Finding(outcome, at_least, at_most)


def worst(outcomes: Iterable["RolloutVerdict.Outcome.ValueType"]) -> "RolloutVerdict.Outcome.ValueType":
    """What a stage comes to; TOO_FEW if there is nothing to judge it by."""
    return min(outcomes, key=_WORST.index, default=RolloutVerdict.TOO_FEW)


def allowed(budget: float, judge: RolloutJudge) -> float:
    """The share of calls that may be bad, with an SLO's error budget, 0 to 1."""
    return min(1.0, budget * (judge.max_burn or 1.0))


def least_calls(judge: RolloutJudge) -> int:
    """How many calls it takes to find a stage good."""
    return judge.min_calls or MIN_CALLS
