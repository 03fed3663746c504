"""One agent, as the council sees it. What it answers is another tenant's word: bounded, and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.error import Away

TIMEOUT_S: Final = 10.0
MAX_TEXT: Final = 1000


@dataclass(frozen=True)
class Speech:
    """What an agent says in a debate: {whose finding: what it says to it}, and its vote."""

    critiques: Mapping[str, str]
    vote: str


class Member:
    """Calls an agent."""

    def __init__(self, name: str, stub: daena_pb2_grpc.AgentStub) -> None:
        self.name = name
        self._stub = stub

    def scout(self, question: str, earlier: Sequence[str]) -> str:
        """Returns the agent's finding.

        Raises:
            Away: it has none.
        """
        try:
            found = self._stub.Scout(daena_pb2.ScoutRequest(question=question, earlier=earlier), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._away(error) from None
        text = _bounded(found.text)
        if not text:
            raise Away(f"{self.name}: an empty finding")
        return text

    def debate(self, question: str, findings: Mapping[str, str]) -> Speech:
        """Returns what the agent says to the findings, {agent: text}.

        Raises:
            Away: it doesn't answer.
        """
        shown = [daena_pb2.Finding(agent=agent, text=text) for agent, text in findings.items()]
        try:
            said = self._stub.Debate(daena_pb2.DebateRequest(question=question, findings=shown), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._away(error) from None
        critiques = {one.agent: _bounded(one.text) for one in said.critiques if one.agent in findings}
        return Speech(critiques, said.vote)

    def _away(self, error: grpc.RpcError) -> Away:
        return Away(f"{self.name}: {error.code().name if isinstance(error, grpc.Call) else 'UNKNOWN'}")


def _bounded(text: str) -> str:
    return " ".join(text[: 4 * MAX_TEXT].split())[:MAX_TEXT]
