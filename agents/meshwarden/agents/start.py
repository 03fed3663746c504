"""What an agent's start is traced with before there is an agent that could send spans."""

from typing import Final

from opentelemetry import trace

from meshwarden.sdk.tracing.own_span import Kept, Provider, Send, own_provider

OWN_NAME: Final = "meshwarden-agent"


class Begun:
    """A start under way: its span `start`, and the spans that ended since."""

    def __init__(self) -> None:
        self._kept = Kept()
        self.provider: Provider = own_provider(OWN_NAME, self._kept)
        self.span: trace.Span = self.provider.get_tracer("meshwarden.agents").start_span("start")

    def end(self, send: Send) -> trace.Span:
        """Spans go to `send` from now on, and so do those that were kept; returns the start's own, which goes on."""
        self._kept.pass_to(send)
        return self.span
