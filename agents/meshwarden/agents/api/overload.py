"""How many calls of programs the agent takes at once, and whose."""

import time
from collections.abc import Callable
from typing import Any, Final

from meshwarden.agents.telemetry.intake import Intake
from meshwarden.agents.telemetry.receive import EXPORTS
from meshwarden.agents.workload.attest import Attestor
from meshwarden.sdk.backpressure.concurrency import Concurrency
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.overload import OverloadInterceptor, by_name
from meshwarden.sdk.tracing import numbered

_LEAST, _MOST = 16, 1024
_CRITICALITY: Final = {"Report": Criticality.SHEDDABLE_PLUS, "Export": Criticality.SHEDDABLE_PLUS}
# What it takes is what the control plane and a sidecar take, and how many there may be is the registry's business.
_WAITING: Final = frozenset({"/meshwarden.v1.WorkloadService/Register"})
_SIGNALS: Final = {**EXPORTS, "/meshwarden.v1.WorkloadService/Report": "call"}


def overload(attestor: Attestor, intake: Intake, chance: Callable[[], float]) -> OverloadInterceptor:
    """Makes what bounds the unary calls of workloads, and of users whose programs are none, each for themselves.

    Telemetry that isn't let in is told to `intake`, unless its sender accounts for that.
    """

    def caller(context: Any) -> str:
        peer = context.peer()
        workload = attestor.find(peer)
        return workload.id if workload is not None else attestor.owner(peer)

    def shed(method: str, context: Any) -> None:
        signal = _SIGNALS.get(method)
        if signal is not None and numbered.find(context.invocation_metadata()) is None:
            workload = attestor.find(context.peer())
            intake.shed(signal, (workload.spiffe_id.tenant or "") if workload is not None else "")

    places = Concurrency(_LEAST, _MOST, time.monotonic(), chance)
    return OverloadInterceptor(
        places, caller, by_name(_CRITICALITY, Criticality.CRITICAL), exempt=_WAITING, on_shed=shed
    )
