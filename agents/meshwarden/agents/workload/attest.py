"""From an RPC to the workload behind it: the first step of everything that the agent's sockets offer.

Errors: `Unidentified`, with a message for the caller that says what to do.
"""

from typing import Any

import grpc

from meshwarden.agents.attestation.caller import is_own_user
from meshwarden.agents.attestation.selector import told
from meshwarden.agents.workload.entry import RegistrationRefused
from meshwarden.agents.workload.registry import EXEC_FIX, Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.sdk.mtls.connection import Connection
from meshwarden.sdk.mtls.front import Front


class Unidentified(Exception):
    """Nobody that we know is calling."""


class Attestor:
    """Tells who is behind an RPC, by the connection that it came on and the kernel's word on that."""

    def __init__(self, front: Front, registry: Registry) -> None:
        """Puts together what knows connections and what knows workloads."""
        self._front, self._registry = front, registry

    def connection(self, peer: str) -> Connection:
        """The connection of a `context.peer()`.

        Raises:
            Unidentified: it did not come through the front.
        """
        connection = self._front.find(peer)
        if connection is None or connection.pid is None:
            raise Unidentified("calls are taken on the agent's own sockets only")
        return connection

    def find(self, peer: str) -> Workload | None:
        """The registered workload of a `context.peer()`; None if it is none."""
        connection = self._front.find(peer)
        return None if connection is None else self._registry.find(connection)

    def owner(self, peer: str) -> str:
        """Among whose connections that of a `context.peer()` counts; empty if it did not come through the front."""
        connection = self._front.find(peer)
        return "" if connection is None else connection.owner

    async def registered(self, context: grpc.aio.ServicerContext[Any, Any]) -> Workload:
        """The workload that the caller registered as, or was started below.

        Raises:
            Unidentified: it is none.
        """
        connection = self.connection(context.peer())
        await self._registry.learn(connection)
        workload = self._registry.find(connection)
        if workload is None:
            raise Unidentified(self._why(connection))
        return workload

    async def workload(self, context: grpc.aio.ServicerContext[Any, Any]) -> Workload:
        """The caller's workload; a caller that is none yet becomes that of the one entry that it fits.

        Raises:
            Unidentified: it fits no entry, or several.
        """
        connection = self.connection(context.peer())
        await self._registry.learn(connection)
        workload = self._registry.find(connection)
        if workload is not None:
            return workload
        try:
            return self._registry.register_implicit(connection)
        except RegistrationRefused as refusal:
            raise Unidentified(str(refusal)) from None

    async def confirm(self, context: grpc.aio.ServicerContext[Any, Any], workload: Workload) -> None:
        """Returns if the caller is still that workload's: its entry's selectors may have changed meanwhile.

        Raises:
            Unidentified: it is not.
        """
        if await self.registered(context) is not workload:
            raise Unidentified("the workload's registration has ended")

    def _why(self, connection: Connection) -> str:
        misfits = self._registry.misfits(connection)
        if misfits:
            return f"this process does not fit its workload entry: {told(misfits, in_full=is_own_user(connection))}"
        return f"this process is no workload of this node: {EXEC_FIX}"
