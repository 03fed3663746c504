"""Asks the council, again and again, and verifies each decision by its hash; or says what all services measured."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, Final

import grpc

from meshwarden import sdk
from meshwarden.examples import trace
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc, notes
from meshwarden.examples.daena.memory.record import Record, canonical, id_of
from meshwarden.sdk.stop import Stop

TIMEOUT_S: Final = 30.0
SERVICES: Final[Mapping[str, Any]] = {
    "bus.daena": daena_pb2_grpc.BusStub,
    "council.daena": daena_pb2_grpc.CouncilStub,
    "memory.daena": daena_pb2_grpc.MemoryStub,
    "model.daena": daena_pb2_grpc.ModelStub,
    "scholar.daena": daena_pb2_grpc.AgentStub,
    "analyst.acme": daena_pb2_grpc.AgentStub,
    "sceptic.globex": daena_pb2_grpc.AgentStub,
}


class Convener:
    """Asks one question a round."""

    def __init__(self, council: daena_pb2_grpc.CouncilStub, memory: daena_pb2_grpc.MemoryStub) -> None:
        self._council = council
        self._memory = memory

    def hold(self, question: str) -> dict[str, Any]:
        """Holds a round and returns what came of it: the decision, its trace, and whether its record is verified.

        Raises:
            grpc.RpcError: the council or the memory does not answer.
        """
        with trace.span("round", kind="internal", attributes={"council.question": question}):
            decision = self._council.Hold(daena_pb2.HoldRequest(question=question), timeout=TIMEOUT_S)
            read = self._memory.Read(daena_pb2.ReadRequest(id=decision.record), timeout=TIMEOUT_S)
            found = trace.trace_id()
        raw = _canonical(read.record)
        return {
            "round": decision.round,
            "trace_id": found,
            "question": question,
            "winner": decision.winner,
            "text": decision.text,
            "votes": dict(decision.votes),
            "absent": list(decision.absent),
            "record": decision.record,
            "tier": read.tier,
            # Worked out here, from what was read: the memory's word is not taken for it.
            "verified": id_of(raw).hex() == decision.record and read.record.fields["text"] == decision.text,
        }


def steadily(every_s: float, stop: Stop) -> None:
    """Holds a round each `every_s` seconds until it is told to stop."""
    questions = notes.lines("questions")
    with _stubs("council.daena", "memory.daena") as (council, memory):
        convener = Convener(council, memory)
        for number in count():
            try:
                held = convener.hold(questions[number % len(questions)])
            except grpc.RpcError as error:
                logging.warning("no decision: %s", _why(error))
            else:
                verified = "verified" if held["verified"] else "NOT AS WRITTEN"
                logging.info("%s %s: %s", held["winner"], held["votes"], held["text"])
                logging.info("record %s, %s", held["record"], verified)
            if stop.wait(every_s):
                return


def rounds(number: int) -> bool:
    """Holds so many rounds and prints each as a line of JSON; returns whether all were held and verified."""
    questions = notes.lines("questions")
    good = True
    with _stubs("council.daena", "memory.daena") as (council, memory):
        convener = Convener(council, memory)
        for one in range(number):
            try:
                held = convener.hold(questions[one % len(questions)])
            except grpc.RpcError as error:
                held = {"error": _why(error)}
            good = good and held.get("verified", False)
            print(json.dumps(held), flush=True)
    return good


def read(ids: Sequence[str]) -> bool:
    """Prints records, each as a line of JSON with its canonical bytes; returns whether all were read."""
    good = True
    with _stubs("memory.daena") as (memory,):
        for one in ids:
            try:
                found = memory.Read(daena_pb2.ReadRequest(id=one), timeout=TIMEOUT_S)
                said = {"record": one, "tier": found.tier, "canonical": _canonical(found.record).decode()}
            except grpc.RpcError as error:
                good, said = False, {"record": one, "error": _why(error)}
            print(json.dumps(said), flush=True)
    return good


def stats() -> None:
    """Prints what each service has measured, as one document: {service: [point]}."""
    with _stubs(*SERVICES) as stubs:
        found = {
            name: [_plain(point) for point in stub.Stats(daena_pb2.StatsRequest(), timeout=TIMEOUT_S).points]
            for name, stub in zip(SERVICES, stubs, strict=True)
        }
    json.dump(found, sys.stdout)
    print(flush=True)


@contextmanager
def _stubs(*names: str) -> Iterator[Sequence[Any]]:
    with ExitStack() as stack:
        yield [SERVICES[name](stack.enter_context(sdk.channel(f"xds:///{name}"))) for name in names]


def _canonical(found: daena_pb2.Record) -> bytes:
    return canonical(Record(found.tenant, found.author, found.kind, dict(found.fields)))


def _plain(point: daena_pb2.Point) -> dict[str, Any]:
    plain = {"name": point.name, "unit": point.unit, "attributes": dict(point.attributes), "value": point.value}
    if point.bounds:
        plain |= {"count": point.count, "bounds": list(point.bounds), "buckets": list(point.buckets)}
    return plain


def _why(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
