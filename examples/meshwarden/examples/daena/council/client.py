"""How the council uses memory and bus."""

from collections.abc import Mapping
from typing import Final

import grpc

from meshwarden.examples import trace
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.council.session import KIND
from meshwarden.examples.daena.error import Away

TIMEOUT_S: Final = 5.0
TOPIC: Final = "decisions"
EARLIER: Final = 3


class MemoryClient:
    """Reads and writes decisions."""

    def __init__(self, stub: daena_pb2_grpc.MemoryStub) -> None:
        self._stub = stub

    def latest(self) -> list[str]:
        """Returns the texts of the newest decisions. One that is corrupt is left out: the memory has counted it.

        Raises:
            Away: the memory doesn't answer.
        """
        try:
            listed = self._stub.List(daena_pb2.ListRequest(kind=KIND, limit=EARLIER), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise _away("memory", error) from None
        return [text for entry in listed.entries if (text := self._text(entry.id))]

    def keep(self, kind: str, fields: Mapping[str, str]) -> str:
        """Keeps a record and returns its id.

        Raises:
            Away: the memory doesn't take it.
        """
        try:
            return self._stub.Write(daena_pb2.WriteRequest(kind=kind, fields=fields), timeout=TIMEOUT_S).id
        except grpc.RpcError as error:
            raise _away("memory", error) from None

    def _text(self, record: str) -> str:
        try:
            found = self._stub.Read(daena_pb2.ReadRequest(id=record), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DATA_LOSS:
                return ""
            raise _away("memory", error) from None
        return found.record.fields.get("text", "")


class BusHerald:
    """Publishes decisions."""

    def __init__(self, stub: daena_pb2_grpc.BusStub) -> None:
        self._stub = stub

    def announce(self, said: daena_pb2.Announcement) -> None:
        """Publishes a decision; its message leads back to this trace.

        Raises:
            Away: the bus doesn't take it.
        """
        attributes = {
            "messaging.system": "daena",
            "messaging.operation.type": "send",
            "messaging.destination.name": TOPIC,
        }
        with trace.span(f"publish {TOPIC}", kind="producer", attributes=attributes) as span:
            request = daena_pb2.PublishRequest(
                topic=TOPIC,
                payload=said.SerializeToString(deterministic=True),
                traceparent=trace.headers().get("traceparent", ""),
            )
            try:
                published = self._stub.Publish(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                raise _away("bus", error) from None
            span.set({"messaging.message.id": str(published.id)})


def _away(what: str, error: grpc.RpcError) -> Away:
    return Away(f"{what}: {error.code().name if isinstance(error, grpc.Call) else 'UNKNOWN'}")
