"""Hears on the bus what the council has decided, and counts how often the agent's own finding was taken."""

import logging
import random
import threading
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from meshwarden.examples import trace
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.metric import Meter

TOPIC: Final = "decisions"
SUBSCRIPTION: Final = "outcomes"
TIMEOUT_S: Final = 5.0
_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 5.0


class Listener:
    """Consumes decisions until it is closed; a stream that breaks is opened anew."""

    def __init__(self, stub: daena_pb2_grpc.BusStub, agent: str, meter: Meter, rng: random.Random) -> None:
        self._stub = stub
        self._agent = agent
        self._rng = rng
        self._outcomes = meter.counter("agent.outcomes", "{decision}")
        self._ended = threading.Event()
        self._call: Any = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Consumes until `close`."""
        backoff_s = _BACKOFF_S
        while not self._ended.is_set():
            try:
                for message in self._open():
                    backoff_s = _BACKOFF_S
                    self.consume(message)
            except grpc.RpcError as error:
                if not self._ended.is_set():
                    said = error.code().name if isinstance(error, grpc.Call) else str(error)
                    logging.info("%s of the bus: %s; again in %.1f s at most", TOPIC, said, backoff_s)
            self._ended.wait(self._rng.uniform(0, backoff_s))
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def consume(self, message: daena_pb2.Message) -> None:
        """Takes one message and acknowledges it.

        Raises:
            grpc.RpcError: the bus doesn't hear that; the message will come again.
        """
        attributes = {
            "messaging.system": "daena",
            "messaging.operation.type": "process",
            "messaging.destination.name": message.topic,
            "messaging.message.id": str(message.id),
        }
        with trace.span(f"process {TOPIC}", kind="consumer", attributes=attributes, link=message.traceparent):
            try:
                said = daena_pb2.Announcement.FromString(message.payload)
            except DecodeError:  # it will not be better the next time
                outcome = "unreadable"
            else:
                outcome = "taken" if said.winner == self._agent else "overruled"
            acknowledgement = daena_pb2.AcknowledgeRequest(
                topic=message.topic, subscription=SUBSCRIPTION, ids=[message.id]
            )
            answer = self._stub.Acknowledge(acknowledgement, timeout=TIMEOUT_S)
        if answer.acknowledged:  # else it was counted before
            self._outcomes.add(1, {"outcome": outcome})

    def close(self) -> None:
        """Ends `run`."""
        with self._lock:
            self._ended.set()
            if self._call is not None:
                self._call.cancel()

    def _open(self) -> Iterator[daena_pb2.Message]:
        request = daena_pb2.SubscribeRequest(topic=TOPIC, subscription=SUBSCRIPTION)
        with self._lock:
            call: Any = self._stub.Subscribe(request)
            if self._ended.is_set():
                call.cancel()
            self._call = call
        stream: Iterator[daena_pb2.Message] = call
        return stream
