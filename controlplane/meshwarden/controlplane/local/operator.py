"""The mesh's operator: what `up` asks of the control plane, over the certificate that any operator has."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from meshwarden.controlplane.local.client import Client, credentials_of
from meshwarden.controlplane.local.context import Context
from meshwarden.controlplane.local.error import LocalError
from meshwarden.v1.admin_service_pb2 import CreateJoinTokenRequest, GetStatusRequest, GetStatusResponse
from meshwarden.v1.resource_service_pb2 import ApplyRequest, ListRequest
from meshwarden.v1.resources_pb2 import Endpoint, Resource
from meshwarden.v1.workload_service_pb2 import AgentStatusRequest, AgentStatusResponse
from meshwarden.v1.workload_service_pb2_grpc import WorkloadServiceStub

CALL_S = 10.0
TOKEN_LIFE_S = 600
POLL_S = 0.1
T = TypeVar("T")


class Operator:
    """A connection to the control plane that follows the renewals of its certificate."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._channel: Any = None
        self._shown: int | None = None

    async def status(self) -> GetStatusResponse:
        """Returns how the mesh does."""
        answer: GetStatusResponse = await (await self._client()).admin.GetStatus(GetStatusRequest(), timeout=CALL_S)
        return answer

    async def join_token(self, node: str) -> str:
        """Makes a one-time token for a node."""
        request = CreateJoinTokenRequest(node=node, ttl=Duration(seconds=TOKEN_LIFE_S))
        return str((await (await self._client()).admin.CreateJoinToken(request, timeout=CALL_S)).token)

    async def apply(self, resources: Sequence[Resource]) -> int:
        """Stores resources, all or none, and returns the store's revision."""
        answer = await (await self._client()).resource.Apply(ApplyRequest(resources=resources), timeout=CALL_S)
        return int(answer.revision)

    async def endpoints(self) -> list[Endpoint]:
        """Returns all endpoints."""
        found: list[Endpoint] = []
        request = ListRequest(kind="Endpoint")
        while True:
            page = await (await self._client()).resource.List(request, timeout=CALL_S)
            found += [resource.endpoint for resource in page.resources]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def close(self) -> None:
        """Ends the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _client(self) -> Client:
        shown = await asyncio.to_thread(_modified, self._context.cert_file)
        if self._channel is None or shown != self._shown:
            await self.close()
            credentials, options = await asyncio.to_thread(credentials_of, self._context)
            # A control plane that comes back is to be found at once.
            options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
            self._channel = grpc.aio.secure_channel(self._context.address, credentials, options=options)
            self._shown = shown
        return Client(self._channel)


class AgentLink:
    """A connection to an agent's own socket."""

    def __init__(self, socket: Path) -> None:
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel: Any = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self._stub: Any = WorkloadServiceStub(self._channel)

    async def status(self) -> AgentStatusResponse:
        """Returns how the agent does."""
        answer: AgentStatusResponse = await self._stub.AgentStatus(AgentStatusRequest(), timeout=CALL_S)
        return answer

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()


async def wait_for(
    what: str,
    look: Callable[[], Awaitable[T | None]],
    timeout_s: float,
    tails: Callable[[], Iterable[str]] = tuple,
    failure: Callable[[], str | None] = lambda: None,
) -> T:
    """Looks until there is something to see, and returns it.

    Args:
        what: names it in the error.
        look: returns None while there is nothing; gRPC and file errors count as nothing.
        timeout_s: for how long.
        tails: what to add to the error: the ends of logs.
        failure: why there is nothing to wait for any more; None while there is.

    Raises:
        LocalError: there was nothing within the time, or there never will be.
    """
    last = ""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    seen = await look()
                    last = ""
                except grpc.aio.AioRpcError as error:
                    seen, last = None, f" ({error.code().name}: {error.details()})"
                except (OSError, LocalError) as error:
                    seen, last = None, f" ({error})"
                if seen is not None:
                    return seen
                if (reason := failure()) is not None:
                    raise LocalError(reason)
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise LocalError("\n".join([f"{what}: not within {timeout_s:g} s{last}", *tails()])) from None


def _modified(path: str) -> int:
    return Path(path).stat().st_mtime_ns
