"""What a council decides, from its findings and its votes. Pure; nothing that an agent says can make it fail."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What was decided.

    Attributes:
        winner: the agent whose finding was taken.
        votes: {agent: how many}, for every finding.
        spoiled: votes for oneself, or for what is no finding.
    """

    winner: str
    votes: Mapping[str, int]
    spoiled: int


def decide(findings: Mapping[str, str], ballots: Mapping[str, str]) -> Outcome:
    """Takes the finding with the most votes; of several that of the agent first by name.

    Args:
        findings: {agent: text}, at least one.
        ballots: {voter: the agent voted for}; empty where somebody abstains.
    """
    valid = Counter(vote for voter, vote in ballots.items() if vote in findings and vote != voter)
    cast = sum(1 for vote in ballots.values() if vote)
    votes = {agent: valid[agent] for agent in sorted(findings)}
    winner = min(votes, key=lambda agent: (-votes[agent], agent))
    return Outcome(winner, votes, cast - sum(valid.values()))
