"""A steady load on both planes while something is done to the mesh: no call may fail of it."""

import contextlib
from collections.abc import AsyncIterator, Mapping

from meshwarden.controlplane.local.check.call import BILLING, ORDERS, Probes, only
from meshwarden.controlplane.local.check.probe import Probe
from meshwarden.controlplane.local.check.result import CheckFailed

RATE = 20.0
# {op: (the call, the code of one that passes)}
PLANES: Mapping[str, tuple[Mapping[str, str], str]] = {"grpc": (ORDERS, "OK"), "http": (BILLING, "200")}


class Load:
    """The calls that go on. Each probe's calls on each plane have the plane's name."""

    def __init__(self) -> None:
        self._running: list[tuple[Probe, str]] = []

    async def start(self, probe: Probe, plane: str) -> None:
        """Starts one probe's calls on one plane."""
        call, _ = PLANES[plane]
        await probe.ask("steady_start", id=plane, call={"op": plane, "rate": RATE, **call})
        self._running.append((probe, plane))

    async def unfailing(self) -> int:
        """Stops all and returns how many calls there were; every one must have passed."""
        calls = 0
        while self._running:
            probe, plane = self._running.pop()
            answer = await probe.ask("steady_stop", id=plane)
            calls += only(answer, PLANES[plane][1], f"{probe.name}, {plane} under load")
        return calls

    async def stop(self) -> None:
        """Stops what still runs, whatever became of it."""
        while self._running:
            probe, plane = self._running.pop()
            with contextlib.suppress(CheckFailed):
                await probe.ask("steady_stop", id=plane)


@contextlib.asynccontextmanager
async def loaded(probes: Probes) -> AsyncIterator[Load]:
    """Keeps up a load of acme and of globex on both planes; it ends with the context, if not before."""
    load = Load()
    try:
        for probe in (probes.acme, probes.globex):
            for plane in PLANES:
                await load.start(probe, plane)
        yield load
    finally:
        await load.stop()
