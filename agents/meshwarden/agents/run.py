"""An agent from its first moment to its last: who it is, what it may hold alone, and the signals that end it."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import anyio
import grpc
import structlog
from opentelemetry import trace

from meshwarden.agents.backoff import Backoff
from meshwarden.agents.channel import ControlPlane
from meshwarden.agents.config import AgentConfig, ConfigError
from meshwarden.agents.daemon import Agent
from meshwarden.agents.identity.node import Banned, NodeIdentity
from meshwarden.agents.proof.port import IdentityError, Proof, ProofAway
from meshwarden.agents.seal import seals
from meshwarden.agents.start import Begun
from meshwarden.agents.state import hold, wipe
from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.sdk.descriptor import allow_descriptors
from meshwarden.sdk.heap import settle
from meshwarden.sdk.tracing.own_span import client_interceptor

_log = structlog.get_logger()
# Calls of which there are few, and which somebody waits for.
_TRACED: Final = frozenset(
    f"/meshwarden.v1.NodeService/{method}" for method in ("Attest", "Renew", "SignWorkload", "SignJwt")
)

Clock = Callable[[], datetime]


async def run(config: AgentConfig, clock: Clock, rng: random.Random) -> None:
    """Runs an agent until SIGTERM or SIGINT.

    Raises:
        ConfigError: the roots cannot be read, or what systemd gives as the cache's key is none.
        StateTaken: another agent runs on the same state directory.
        IdentityError: the node has no identity and gets none, or is banned.
        OSError: a directory or a socket cannot be made.
    """
    roots, begun = _roots(config), Begun()
    allow_descriptors()
    with hold(config) as place:
        traced = (client_interceptor(begun.provider, _TRACED),)
        control_plane = ControlPlane(config.addresses, config.trust_domain, traced)
        sealing = seals(os.environ.get("CREDENTIALS_DIRECTORY"), place.cache.with_name(f"{place.cache.name}-key"))
        identity = NodeIdentity(config.node, control_plane, place.identity, roots, clock, rng, sealing)
        proof = config.proof()
        stopped = anyio.CancelScope()
        agents: list[Agent] = []
        try:
            with stopped:
                async with anyio.create_task_group() as group:
                    group.start_soon(_until_signal, stopped, agents)
                    if not identity.is_good():
                        with trace.use_span(begun.span):
                            await _attest(control_plane, identity, proof, rng)
                    agents.append(Agent(config, place, control_plane, identity, proof, clock, rng, begun))
                    settle()
                    await agents[0].run()
        except BaseExceptionGroup as group:
            if group.subgroup(Banned) is not None:
                wipe(place)
            raise
        except asyncio.CancelledError:
            # A cancelled call of grpc.aio raises one of its own making, which no scope knows as its own.
            if not stopped.cancel_called:
                raise
    _log.info("agent ended", pid=os.getpid())


async def _attest(control_plane: ControlPlane, identity: NodeIdentity, proof: Proof, rng: random.Random) -> None:
    """Waits for the control plane as long as it takes, unless the disk holds an identity to go on with."""
    backoff = Backoff(rng)
    while True:
        for address in control_plane.in_turn():
            try:
                await identity.attest(proof)
                return
            except Banned:
                raise
            except ProofAway as error:
                reason = str(error)
            except grpc.aio.AioRpcError as error:
                reason = f"{address} does not answer: {error.details()}"
            except IdentityError as error:
                if not identity.is_somebody():
                    raise
                reason = str(error)
            _log.warning("node not attested", reason=reason)
        if identity.is_somebody():
            # Its certificate has ended, but those of its workloads may not have: they are served from the cache.
            return
        await asyncio.sleep(backoff.next_s())


async def _until_signal(scope: anyio.CancelScope, agents: Sequence[Agent]) -> None:
    """Ends the scope at a signal, once what runs by then was drained."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("agent ending", signal=signal.Signals(number).name)
            for agent in agents:
                await agent.attendants.drain()
            scope.cancel()
            return


def _roots(config: AgentConfig) -> Bundle:
    try:
        return Bundle.parse_pem(config.trust_domain, config.ca_file.read_bytes())
    except (OSError, InvalidBundle) as error:
        raise ConfigError(f"ca_file: {error}") from None
