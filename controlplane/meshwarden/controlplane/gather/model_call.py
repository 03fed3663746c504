"""Calls of generative models that agents tell of: whose they are is checked here, what they cost is told elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from meshwarden.controlplane.gather.call import OLDEST, Refused
from meshwarden.controlplane.gather.reporter import Reporter
from meshwarden.controlplane.gather.resource import named
from meshwarden.v1.report_pb2 import ModelCall, ModelCalls

SIGNAL: Final = "model_call"


@dataclass(frozen=True)
class Told:
    """What a workload of one of our nodes has called.

    Attributes:
        tenant: whose it is, as its certificate says.
        service: the workload's, likewise.
        time_s: when, in seconds since 1970.
        calls: the calls, as their spans have them.
    """

    tenant: str
    service: str
    time_s: int
    calls: Sequence[ModelCall]


class Meter(Protocol):
    """Counts them."""

    def add(self, told: Told) -> None:
        """Takes calls, to be written by the next flush."""

    def size_bytes(self) -> int:
        """How much of the file it has, about."""


def told_of(body: bytes, reporter: Reporter) -> Told:
    """Reads what an agent tells, if it may. A time that can't be is brought to one that can.

    Raises:
        Refused: it is malformed or of no workload of the node.
    """
    try:
        message = ModelCalls.FromString(body)
    except DecodeError:
        raise Refused("malformed") from None
    tenant, service = named(message.reporter, reporter.node, reporter.owns, len(message.calls))
    if not tenant:
        raise Refused("unidentified", len(message.calls))
    now_s = int(reporter.now.timestamp())
    return Told(tenant, service, min(max(message.time_s, now_s - int(OLDEST.total_seconds())), now_s), message.calls)
