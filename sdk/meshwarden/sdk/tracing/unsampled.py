"""Spans of calls of generative models that no trace records: made for their tokens, which the node's agent counts."""

from typing import Final

UNSAMPLED: Final = "mesh.unsampled"
"""The attribute by which the agent knows such a span; it goes no further."""
MODEL: Final = "gen_ai.request.model"
"""The attribute that such a call has from its beginning. Source: OpenTelemetry's conventions for generative AI."""
