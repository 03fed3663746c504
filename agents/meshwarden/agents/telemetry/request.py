"""A request on its way through the intake: who has sent it, what is in it, and what becomes of that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.xds.in_force import RevisionAt
from meshwarden.v1 import report_pb2 as pb


@dataclass
class Piece:
    """Part of a request on its way to the spool, as one record."""

    bodies: list[bytes]
    size: int = 0
    items: int = 0


@dataclass(frozen=True)
class Resources:
    """A request's `Resource…`, of spans as `wire` has them; `are_plain` as of `sieve.are_plain`."""

    all: Sequence[Any]
    are_plain: bool = False


@dataclass(frozen=True)
class Sender:
    """Who has sent a request, whether reading it takes too long, and what it ran under; see `Intake.take`.

    `calls` are those of models that its spans have told of.
    """

    workload: Workload
    is_late: Callable[[], bool]
    revision_at: RevisionAt | None
    calls: list[pb.ModelCall] = field(default_factory=list)
