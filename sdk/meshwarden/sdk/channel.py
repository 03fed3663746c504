"""Channels into the mesh."""

import os
from collections.abc import Sequence
from typing import Any, Final

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.error import NotStarted
from meshwarden.sdk.outgoing import Outgoing

Options = Sequence[tuple[str, Any]]
BOOTSTRAP_VARIABLES: Final = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")
_SCHEME: Final = "xds:///"


def channel(target: str, *, options: Options = (), throttled: bool = True, retries: int = 0) -> grpc.Channel:
    """Opens a channel to a service of the mesh, over mTLS or not at all.

    Its calls are counted and carry the trace of the call being served.

    Args:
        target: `xds:///orders`, or `xds:///orders.platform`, which is exact.
        options: gRPC channel arguments.
        throttled: whether calls are refused here that the destination would most likely refuse
            (`meshwarden.sdk.backpressure.throttle`).
        retries: how often, at most 5 times, a unary call that was refused or ended with UNAVAILABLE is made again,
            within a budget of a tenth of the calls (`meshwarden.sdk.backpressure.retry`). UNAVAILABLE may hide that the
            server did it: this is for methods that may run twice.

    Raises:
        ValueError: the target is no name in the mesh, or that many retries are not made.
        NotStarted: the program doesn't run under a node agent.
        AgentAway: the agent doesn't say who the program is.
    """
    name, link = _dial(target)
    link.wait()
    made = grpc.secure_channel(target, _credentials(), options=list(options))
    return CountedChannel(made, Outgoing(link, name, throttled=throttled, retries=retries))


def aio_channel(target: str, *, options: Options = (), throttled: bool = True, retries: int = 0) -> grpc.aio.Channel:
    """Opens a channel like `channel` for grpc.aio. It waits for nothing: an agent that is away shows at the first call.

    Raises:
        ValueError: the target is no name in the mesh.
        NotStarted: the program doesn't run under a node agent.
    """
    name, link = _dial(target)
    made = grpc.aio.secure_channel(target, _credentials(), options=list(options))
    return CountedAioChannel(made, Outgoing(link, name, throttled=throttled, retries=retries))


def _dial(target: str) -> tuple[str, AgentLink]:
    name = target.removeprefix(_SCHEME)
    if not target.startswith(_SCHEME) or not name:
        raise ValueError(
            f"{target!r}: services of the mesh are called by name, xds:///orders or xds:///orders.platform"
        )
    require_bootstrap()
    return name, AgentLink.of_process()


def _credentials() -> grpc.ChannelCredentials:
    # Without a fallback of ours a cluster without TLS is spoken to in public TLS, which no workload answers: closed.
    return grpc.xds_channel_credentials()


def require_bootstrap() -> None:
    """Checks that gRPC will find the agent.

    Raises:
        NotStarted: it won't.
    """
    if not any(os.environ.get(name) for name in BOOTSTRAP_VARIABLES):
        raise NotStarted(
            f"{BOOTSTRAP_VARIABLES[0]} is not set: start the program with "
            "`meshwarden-agent exec --entry NAME -- PROGRAM`"
        )
