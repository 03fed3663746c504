"""An agent as a service."""

from typing import Final

import grpc

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc, field
from meshwarden.examples.daena.agent.mind import CRITIQUE_TOKENS, FINDING_TOKENS, Mind
from meshwarden.examples.daena.error import Invalid
from meshwarden.examples.daena.metric import Meter
from meshwarden.examples.daena.model.client import ModelClient
from meshwarden.examples.daena.serve import answering

MAX_QUESTION_BYTES: Final = 512
MAX_FINDING_BYTES: Final = 4 << 10
MAX_EARLIER: Final = 4
MAX_FINDINGS: Final = 16


class Agent(daena_pb2_grpc.AgentServicer):
    """Scouts and debates."""

    def __init__(self, mind: Mind, model: ModelClient, meter: Meter) -> None:
        self._mind = mind
        self._model = model
        self._meter = meter
        self._findings = meter.counter("agent.findings", "{finding}")
        self._critiques = meter.counter("agent.critiques", "{critique}")
        self._votes = meter.counter("agent.votes", "{vote}")

    def Scout(  # noqa: N802
        self, request: daena_pb2.ScoutRequest, context: grpc.ServicerContext
    ) -> daena_pb2.Finding:
        with answering(context):
            question = _line("question", request.question)
            field.count("earlier", len(request.earlier), 0, MAX_EARLIER)
            earlier = [_text(f"earlier[{number}]", text) for number, text in enumerate(request.earlier)]
            text = self._model.generate(self._mind.scout_prompt(question, earlier), FINDING_TOKENS)
        self._findings.add(1)
        return daena_pb2.Finding(agent=self._mind.name, text=text)

    def Debate(  # noqa: N802
        self, request: daena_pb2.DebateRequest, context: grpc.ServicerContext
    ) -> daena_pb2.DebateResponse:
        with answering(context):
            question, findings = _line("question", request.question), _findings(request)
            others = [(agent, text) for agent, text in findings if agent != self._mind.name]
            critiques = [
                daena_pb2.Finding(
                    agent=agent,
                    text=self._model.generate(self._mind.critique_prompt(question, text), CRITIQUE_TOKENS),
                )
                for agent, text in others
            ]
        self._critiques.add(len(critiques))
        vote = self._mind.vote(question, others)
        if vote:
            self._votes.add(1, {"agent": vote})
        return daena_pb2.DebateResponse(critiques=critiques, vote=vote)

    def Stats(  # noqa: N802
        self, request: daena_pb2.StatsRequest, context: grpc.ServicerContext
    ) -> daena_pb2.StatsResponse:
        return self._meter.stats()


def _findings(request: daena_pb2.DebateRequest) -> list[tuple[str, str]]:
    field.count("findings", len(request.findings), 1, MAX_FINDINGS)
    found = [
        (field.name(f"findings[{number}].agent", one.agent), _text(f"findings[{number}].text", one.text))
        for number, one in enumerate(request.findings)
    ]
    if len({agent for agent, _ in found}) < len(found):
        raise Invalid("findings: an agent has more than one")
    return found


def _line(name: str, value: str) -> str:
    """A question is one line: an empty line would end it in a prompt."""
    return " ".join(field.text(name, value, MAX_QUESTION_BYTES).split())


def _text(name: str, value: str) -> str:
    return " ".join(field.text(name, value, MAX_FINDING_BYTES).split())
