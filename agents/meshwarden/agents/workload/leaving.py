"""Servers that are about to stop: while they say so nobody is sent to them, and whoever is connected is asked to leave.

A server of C-core's ends calls that come in while it stops as CANCELLED, among them those that were on their way when
it began to say that it stops. One whose listener changes does not: it asks its connections to be left and goes on
serving them. So such a server is first given a listener that fits no connection. That needs no control plane; where
there is one, it is told as well that the endpoint is gone.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import grpc

from meshwarden.agents.workload.attest import Attestor, Unidentified
from meshwarden.agents.workload.bootstrap import SERVER_LISTENER
from meshwarden.agents.workload.workload import Workload
from meshwarden.v1 import workload_service_pb2 as pb
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot, resource

ANSWER_S: Final = 1.0
_MAX_STREAMS: Final = 16  # of one workload
_NOBODY: Final = "255.255.255.255"
_PREFIX: Final = SERVER_LISTENER.removesuffix("%s")


class Leaving:
    """Which workloads are."""

    def __init__(self) -> None:
        """None is."""
        self._streams: Counter[Workload] = Counter()
        self._listeners: list[Callable[[], object]] = []

    def __contains__(self, workload: Workload) -> bool:
        return workload in self._streams

    def listen(self, callback: Callable[[], object]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    def count(self, workload: Workload) -> int:
        """How many of a workload's programs say that they are."""
        return self._streams[workload]

    @contextlib.contextmanager
    def on(self, workload: Workload) -> Iterator[None]:
        """A workload is, for the length of the block."""
        self._streams[workload] += 1
        self._tell()
        try:
            yield
        finally:
            self._streams[workload] -= 1
            if not self._streams[workload]:
                del self._streams[workload]
            self._tell()

    def _tell(self) -> None:
        for callback in self._listeners:
            callback()


class LeaveStream:
    """What answers `WorkloadService.Leave`."""

    def __init__(self, attestor: Attestor, leaving: Leaving, is_told: Callable[[str], bool]) -> None:
        """Puts them together.

        Args:
            attestor: knows who calls.
            leaving: is told of it.
            is_told: whether a data plane has answered to all that it is to have, by its id.
        """
        self._attestor, self._leaving, self._is_told = attestor, leaving, is_told
        self._answered = asyncio.Event()

    def look(self) -> None:
        """A data plane may have answered."""
        # Who waits holds the old event; whoever comes next waits for the next answer.
        event, self._answered = self._answered, asyncio.Event()
        event.set()

    async def stream(self, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[pb.LeaveResponse]:
        """Says once that the caller's server has heard of it, or does not; lasts until the caller ends it."""
        try:
            workload = await self._attestor.registered(context)
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise AssertionError("abort raises") from None
        if self._leaving.count(workload) >= _MAX_STREAMS:
            text = f"{workload.id} leaves {_MAX_STREAMS} times already"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        with self._leaving.on(workload):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    while not self._is_told(f"{workload.id}/grpc"):
                        await self._answered.wait()
            yield pb.LeaveResponse()
            await asyncio.Event().wait()  # until it is cancelled


def without_callers(scoped: Snapshot) -> Snapshot:
    """The same, but that listeners of gRPC servers fit no connection."""
    items = (item for named in scoped.resources.values() for item in named.values())
    return Snapshot.of((_closed(item) if item.name.startswith(_PREFIX) else item for item in items), before=scoped)


def _closed(item: Resource) -> Resource:
    listener: Any = api.parse("envoy.config.listener.v3.Listener", item.body)
    listener.ClearField("default_filter_chain")
    for chain in listener.filter_chains:
        chain.filter_chain_match.prefix_ranges.add(address_prefix=_NOBODY).prefix_len.value = 32
    return resource(listener, item.name)
