"""The composition root: the one place that picks engines and puts the control plane together.

Order of start: store, audit, authority, own certificate, services, publisher, then the listener, so that nobody is
answered before there is something to say. `<state_dir>/server.json` says where it listens, once it does.
"""

from contextlib import AsyncExitStack

import anyio

from meshwarden.controlplane import log
from meshwarden.controlplane.app.control_plane import ControlPlane
from meshwarden.controlplane.app.engines import open_engines
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.gather.resource import OWN_NAME
from meshwarden.controlplane.place import alone
from meshwarden.sdk.descriptor import allow_descriptors
from meshwarden.sdk.heap import return_large_blocks, settle
from meshwarden.sdk.tracing.own_span import Kept, own_provider


def run_server(config: Config) -> None:
    """Runs a control plane until SIGTERM or SIGINT.

    Raises:
        AlreadyRunning: another process has this state directory.
        CannotListen: an address can't be listened on.
    """
    log.configure()
    allow_descriptors()
    return_large_blocks()
    anyio.run(serve, config)


async def serve(config: Config) -> None:
    """Picks the engines, puts a control plane together and serves until it is told to stop.

    Raises:
        AlreadyRunning: another process has this state directory.
        CannotListen: an address can't be listened on.
    """
    async with AsyncExitStack() as stack:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(alone(config.state_dir / "server.lock"))
        spans = Kept()
        tracing = own_provider(OWN_NAME, spans)
        control_plane = ControlPlane(config, await open_engines(config, tracing, stack), tracing)
        spans.pass_to(control_plane.take_own_spans)
        settle()
        await control_plane.run()
