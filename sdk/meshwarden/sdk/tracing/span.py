"""The port to spans of calls; its engines are `otel`, and `trace` where OpenTelemetry is not installed."""

from collections.abc import Iterable
from typing import Final, Protocol

import grpc

from meshwarden.sdk.red.exemplar import TraceIds

Headers = tuple[tuple[str, str], ...]
Metadata = Iterable[tuple[str, str | bytes]]


class Span(Protocol):
    """One side of one call, from its beginning on.

    Attributes:
        ends: whether it has an end: `end` need not be called where it has none.
    """

    ends: bool

    @property
    def headers(self) -> Headers:
        """What a client sends along."""

    @property
    def sampled(self) -> TraceIds | None:
        """Where the call is recorded; None if it is not."""

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """The call has ended. To be called once."""


class Unrecorded:
    """A call that is made and that nobody records."""

    ends = False
    sampled: Final = None

    def __init__(self, headers: Headers) -> None:
        self.headers = headers

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """See `Span`."""


class Tracer(Protocol):
    """Makes spans."""

    def client(self, method: str, destination: str) -> Span:
        """Begins a call to be made, below the one being served."""

    def server(self, method: str, metadata: Metadata, source: str) -> Span:
        """Begins a call to be served; in this context calls made from now on are below it.

        Args:
            method: "/package.Service/Method".
            metadata: the caller's.
            source: the caller's SPIFFE ID; empty if nobody has proved it.
        """
