"""What an agent's start is traced with before there is an agent that could send spans."""

from collections import deque
from typing import Final

from opentelemetry import trace

from meshwarden.sdk.own_span import Provider, Send, own_provider

OWN_NAME: Final = "meshwarden-agent"
# An agent that gets no identity asks on and on; of what that was, the newest counts.
MAX_KEPT: Final = 64


class Begun:
    """A start under way: its span `start`, and the spans that ended since."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bytes, int]] = deque(maxlen=MAX_KEPT)
        self._send: Send = lambda body, count: self._kept.append((body, count))
        self.provider: Provider = own_provider(OWN_NAME, lambda body, count: self._send(body, count))
        self.span: trace.Span = self.provider.get_tracer("meshwarden.agents").start_span("start")

    def end(self, send: Send) -> trace.Span:
        """Spans go to `send` from now on, and so do those that were kept; returns the start's own, which goes on."""
        self._send = send
        while self._kept:
            send(*self._kept.popleft())
        return self.span
