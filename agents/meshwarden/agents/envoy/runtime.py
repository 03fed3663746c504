"""How many traces an Envoy records of those that begin at it, as a layer of its runtime.

Not in its listeners: a listener that changes drains its connections and refills the buckets of its limits. What runtime
says holds from the next call on, open connections or not.

Source: Envoy, "Runtime discovery service", and HttpConnectionManager.Tracing.random_sampling.
"""

from typing import Final

from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

LAYER: Final = "sampling"
_RUNTIME: Final = "envoy.service.runtime.v3.Runtime"
_STEPS: Final = 10_000  # Envoy draws a number below it, whatever the denominator


def sampling(ratio: float) -> Resource:
    """The layer that has a share of traces recorded, from 0 to 1, to the ten-thousandth, of which none is only 0."""
    steps = max(round(ratio * _STEPS), 1) if ratio else 0
    share = {"numerator": steps, "denominator": "TEN_THOUSAND"}
    return resource(api.build(_RUNTIME, {"name": LAYER, "layer": {"tracing.random_sampling": share}}), LAYER)
