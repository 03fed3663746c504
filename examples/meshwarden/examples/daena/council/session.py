"""One round: scout, debate, commit.

Members are asked side by side, each in the trace of the round. A round goes on without those that do not answer, as
long as there is a quorum of findings; what it decides is in memory before it is announced.
"""

import contextvars
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from meshwarden.examples import trace
from meshwarden.examples.daena import daena_pb2
from meshwarden.examples.daena.council.member import Speech
from meshwarden.examples.daena.council.tally import Outcome, decide
from meshwarden.examples.daena.error import Away

QUORUM: Final = 2
KIND: Final = "decision"
T = TypeVar("T")


class Sitting(Protocol):
    """A member of the council; each method raises Away if it doesn't answer."""

    @property
    def name(self) -> str:
        """The agent's name."""

    def scout(self, question: str, earlier: Sequence[str]) -> str:
        """Its finding."""

    def debate(self, question: str, findings: Mapping[str, str]) -> Speech:
        """What it says to the findings."""


class Recall(Protocol):
    """The council's memory; each method raises Away if it doesn't answer."""

    def latest(self) -> list[str]:
        """Earlier decisions, the newest first."""

    def keep(self, kind: str, fields: Mapping[str, str]) -> str:
        """Keeps a record and returns its id."""


class Herald(Protocol):
    """Tells the world."""

    def announce(self, said: daena_pb2.Announcement) -> None:
        """Publishes a decision; raises Away if nobody takes it."""


@dataclass(frozen=True)
class Council:
    """Who takes part, and what they use."""

    members: Sequence[Sitting]
    memory: Recall
    herald: Herald
    executor: Executor

    def hold(self, number: str, question: str) -> daena_pb2.Decision:
        """Holds one round.

        Args:
            number: the round's name, which no other has.
            question: what to decide.

        Raises:
            Away: fewer than `QUORUM` findings, or no memory, or no bus; in the latter case the decision is in memory.
        """
        with trace.span("scout", kind="internal") as span:
            earlier = self.memory.latest()
            findings = self._ask_all(self.members, lambda member: member.scout(question, earlier))
            span.set({"council.findings": len(findings), "council.earlier": len(earlier)})
        if len(findings) < min(QUORUM, len(self.members)):
            raise Away(f"{len(findings)} of {len(self.members)} agents have a finding; {QUORUM} are needed")
        with trace.span("debate", kind="internal") as span:
            present = [member for member in self.members if member.name in findings]
            speeches = self._ask_all(present, lambda member: member.debate(question, findings))
            outcome = decide(findings, {voter: speech.vote for voter, speech in speeches.items()})
            span.set({"council.winner": outcome.winner, "council.spoiled": outcome.spoiled})
        with trace.span("commit", kind="internal") as span:
            fields = _fields(number, question, findings[outcome.winner], outcome, speeches)
            record = self.memory.keep(KIND, fields)
            span.set({"nbmf.record.id": record})
            self.herald.announce(daena_pb2.Announcement(round=number, winner=outcome.winner, record=record))
        return daena_pb2.Decision(
            round=number,
            question=question,
            winner=outcome.winner,
            text=findings[outcome.winner],
            votes=outcome.votes,
            spoiled=outcome.spoiled,
            absent=[member.name for member in self.members if member.name not in speeches],
            record=record,
        )

    def _ask_all(self, members: Sequence[Sitting], ask: Callable[[Sitting], T]) -> dict[str, T]:
        """Asks members side by side; returns the answers of those that had one: {name: answer}."""
        # A context for each: it has the trace, and one context can't be entered twice at a time.
        asked = {member.name: self.executor.submit(contextvars.copy_context().run, ask, member) for member in members}
        answers = {}
        for name, answer in asked.items():
            try:
                answers[name] = answer.result()
            except Away:
                continue
        return answers


def _fields(number: str, question: str, text: str, outcome: Outcome, speeches: Mapping[str, Speech]) -> dict[str, str]:
    """What is kept of a round."""
    critiques = {
        f"critique.{voter}": speech.critiques[outcome.winner]
        for voter, speech in speeches.items()
        if voter != outcome.winner and speech.critiques.get(outcome.winner)
    }
    votes = {f"votes.{agent}": str(count) for agent, count in outcome.votes.items()}
    return {
        "round": number,
        "question": question,
        "text": text,
        "winner": outcome.winner,
        "spoiled": str(outcome.spoiled),
        **votes,
        **critiques,
    }
