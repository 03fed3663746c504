"""What a benchmark prints: one JSON object a line for each of its cases.

    {"bench": "push", "case": "policy change CPU, 1000 agents", "ours": 231.0, "reference": "a bare grpc.aio stream …",
     "theirs": 140.0, "ratio": 1.65, "better": "lower", "unit": "µs a push", "rounds": 9}

`ours` and `theirs` are medians over the rounds, in which the two take turns; `ratio` is ours divided by theirs.
"""

import json
import statistics
from dataclasses import dataclass, field
from typing import Literal

DIGITS = 4


class Unmeasurable(Exception):
    """A case has nothing to compare: no round, or a median that is not above 0; the message says what to do."""


@dataclass
class Case:
    """One comparison, round by round.

    Attributes:
        bench: the benchmark.
        name: what is measured.
        reference: the peer or the limit, for people.
        unit: of every figure but the ratio.
        better: which is the better ratio.
        may_be_nothing: whether 0 is a figure: then there may be no ratio.
        ours: our figures, one a round.
        theirs: the reference's, likewise.
    """

    bench: str
    name: str
    reference: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    may_be_nothing: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        """Takes the figures of one round."""
        self.ours.append(ours)
        self.theirs.append(theirs)

    def line(self) -> str:
        """The result as one line of JSON.

        Raises:
            Unmeasurable: there was no round, or a median is not above 0.
        """
        if not self.ours:
            raise Unmeasurable(f"{self.name}: no round was measured")
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        if (ours <= 0 or theirs <= 0) and not self.may_be_nothing:
            raise Unmeasurable(
                f"{self.name}: {ours:g} against {theirs:g} {self.unit} is too little to be told from nothing; "
                "take more agents"
            )
        figures = {
            "bench": self.bench,
            "case": self.name,
            "ours": _rounded(ours),
            "reference": self.reference,
            "theirs": _rounded(theirs),
            "ratio": _rounded(ours / theirs) if theirs > 0 else None,
            "better": self.better,
            "unit": self.unit,
            "rounds": len(self.ours),
        }
        return json.dumps(figures, ensure_ascii=False)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
