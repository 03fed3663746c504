"""How what goes on to backends does, as `status` tells it."""

from collections import Counter
from collections.abc import Iterable

from meshwarden.controlplane.gather.forward.forward import Forwarder
from meshwarden.controlplane.gather.forward.queue import Queue
from meshwarden.controlplane.gather.tail.tail import TailSampler
from meshwarden.controlplane.gather.tally import DROPPED, PASSED, SAMPLE, Tally
from meshwarden.v1.admin_service_pb2 import BackendState, TailSamplingState


def backend_states(forwarders: Iterable[Forwarder], queue: Queue) -> list[BackendState]:
    """How each backend does, and what waits for it."""
    loads = [(forwarder, queue.load(forwarder.backend)) for forwarder in forwarders]
    return [
        BackendState(name=forwarder.backend, error=forwarder.fault, waiting=items, waiting_bytes=size)
        for forwarder, (items, size) in loads
    ]


def tail_state(tail: TailSampler, tally: Tally) -> TailSamplingState | None:
    """How tail sampling does; None if it is off."""
    if not tail.is_on:
        return None
    spans, size = tail.load()
    counts: Counter[str] = Counter()
    for (kind, stage, *_), count in tally.totals().items():
        if stage == SAMPLE:
            counts[kind] += count
    return TailSamplingState(
        ratio=tail.policy.ratio,
        waiting=spans,
        waiting_bytes=size,
        passed=counts[PASSED],
        dropped=counts[DROPPED],
        decided=tail.decided(),
    )
