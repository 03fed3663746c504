"""The council as a service."""

import threading
import time
from collections.abc import Callable
from typing import Final

import grpc

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc, field
from meshwarden.examples.daena.council.session import Council
from meshwarden.examples.daena.error import DaenaError, Full
from meshwarden.examples.daena.metric import SECONDS, Meter
from meshwarden.examples.daena.serve import answering

MAX_QUESTION_BYTES: Final = 512
MAX_ROUNDS: Final = 4


class CouncilService(daena_pb2_grpc.CouncilServicer):
    """Holds rounds, a few at a time."""

    def __init__(
        self,
        council: Council,
        meter: Meter,
        new_round: Callable[[], str],
        monotonic_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`new_round` names a round as no other is named."""
        self._council = council
        self._meter = meter
        self._new_round = new_round
        self._monotonic_s = monotonic_s
        self._room = threading.BoundedSemaphore(MAX_ROUNDS)
        self._rounds = meter.counter("council.rounds", "{round}")
        self._wins = meter.counter("council.wins", "{round}")
        self._spoiled = meter.counter("council.spoiled", "{vote}")
        self._absent = meter.counter("council.absent", "{agent}")
        self._duration = meter.histogram("council.round.duration", "s", SECONDS)

    def Hold(  # noqa: N802
        self, request: daena_pb2.HoldRequest, context: grpc.ServicerContext
    ) -> daena_pb2.Decision:
        begun_s = self._monotonic_s()
        with answering(context):
            question = " ".join(field.text("question", request.question, MAX_QUESTION_BYTES).split())
            decision = self._hold(question)
        self._duration.record(self._monotonic_s() - begun_s)
        self._wins.add(1, {"agent": decision.winner})
        self._spoiled.add(decision.spoiled)
        for agent in decision.absent:
            self._absent.add(1, {"agent": agent})
        return decision

    def Stats(  # noqa: N802
        self, request: daena_pb2.StatsRequest, context: grpc.ServicerContext
    ) -> daena_pb2.StatsResponse:
        return self._meter.stats()

    def _hold(self, question: str) -> daena_pb2.Decision:
        if not self._room.acquire(blocking=False):
            raise Full(f"{MAX_ROUNDS} rounds go on, which is as many as may: ask again later")
        try:
            decision = self._council.hold(self._new_round(), question)
        except DaenaError as error:
            self._rounds.add(1, {"outcome": type(error).__name__.lower()})
            raise
        finally:
            self._room.release()
        self._rounds.add(1, {"outcome": "decided"})
        return decision
