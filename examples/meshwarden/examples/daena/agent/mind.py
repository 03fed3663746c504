"""How an agent thinks: what it asks its model, and whom it votes for. Pure.

The model writes; the agent brings what it knows and judges. A finding has its vote that bears most on the question and
is best borne out by the agent's own notes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshwarden.examples.daena.words import likeness, rarity, weigh

FINDING_TOKENS: Final = 80
CRITIQUE_TOKENS: Final = 48
_BORNE_OUT: Final = 0.5


@dataclass(frozen=True)
class Mind:
    """An agent's name and what it knows."""

    name: str
    notes: tuple[str, ...]

    def scout_prompt(self, question: str, earlier: Sequence[str]) -> str:
        """Asks the model for a finding."""
        return "\n".join([question, "", *self.notes, *earlier])

    def critique_prompt(self, question: str, finding: str) -> str:
        """Asks the model what the notes have to say to another's finding."""
        # The finding leads to the sentences near it, which repeat it or stand against it.
        return "\n".join([f"{question} {' '.join(finding.split())}", "", *self.notes])

    def merit(self, question: str, finding: str) -> float:
        """How good a finding is to this agent, 0 or more."""
        rare = rarity([question, finding, *self.notes])
        found = weigh(finding, rare)
        borne_out = max((likeness(found, weigh(note, rare)) for note in self.notes), default=0.0)
        return likeness(found, weigh(question, rare)) + _BORNE_OUT * borne_out

    def vote(self, question: str, findings: Sequence[tuple[str, str]]) -> str:
        """The agent with the best finding but for oneself; empty if there is no other.

        Args:
            question: what was asked.
            findings: (agent, text).
        """
        others = [(self.merit(question, text), agent) for agent, text in findings if agent != self.name]
        return max(others)[1] if others else ""
