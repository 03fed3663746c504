"""How orders asks the council of daena, another tenant's service."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc

from meshwarden import sdk
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.sdk.error import SdkError

TIMEOUT_S: Final = 20.0


class Undecided(Exception):
    """The council has not decided; its text says why."""


@dataclass(frozen=True)
class Decided:
    """A decision.

    Attributes:
        text: what was decided.
        record: its id in the council's memory.
    """

    text: str
    record: str


class Council:
    """The council, whose channel is opened when it is first asked: most orders need no decision."""

    def __init__(self, target: str, dial: Callable[[str], grpc.Channel] = sdk.channel) -> None:
        """`target` is its name in the mesh, `dial` opens a channel to it."""
        self._target = target
        self._dial = dial
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    def decide(self, question: str) -> Decided:
        """Has one round held.

        Args:
            question: of at most 512 bytes.

        Raises:
            Undecided: the council can't be asked, or does not decide in time.
        """
        try:
            stub = daena_pb2_grpc.CouncilStub(self._open())
            decision = stub.Hold(daena_pb2.HoldRequest(question=question), timeout=TIMEOUT_S)
        except SdkError as error:
            raise Undecided(f"council: {error}") from None
        except grpc.RpcError as error:
            # Not with its status: that orders may not ask says nothing of who calls orders.
            why = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
            raise Undecided(f"council: {why}") from None
        return Decided(decision.text, decision.record)

    def close(self) -> None:
        """Closes its channel."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                self._channel = self._dial(self._target)
            return self._channel
