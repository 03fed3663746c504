"""Holds the calls of a grpc.aio server against the access policies of its service.

grpcio has no RBAC there (no xDS servers), so it is asked here: at each call, and of open streams at each change of the
policies. Until the agent has told them nobody is let in.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.access import Access, Metadata
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.config import Config
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.outgoing import DECISION_KEY

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Refusal(NamedTuple):
    """Why a call may not go on.

    Attributes:
        code: the status that the caller gets.
        message: and the words.
        is_denied: whether policies say so.
    """

    code: grpc.StatusCode
    message: str
    is_denied: bool = True

    @property
    def trailing(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata that go with it."""
        return ((DECISION_KEY, "denied"),) if self.is_denied else ()


_UNTOLD = Refusal(
    grpc.StatusCode.UNAVAILABLE,
    "the node agent has not said yet who may call here: try again",
    is_denied=False,
)
_UNPROVED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "show a certificate of the mesh")


class Stream(Protocol):
    """An open call that may be ended.

    Attributes:
        ended_by: why it is ended; None while it isn't.
    """

    ended_by: Refusal | None

    def refusal(self) -> Refusal | None:
        """Why it may not go on as the policies are now; None if it may."""


class Gate:
    """The access policies of the program's own service, as the agent says them. Used on one event loop."""

    def __init__(self, link: AgentLink) -> None:
        """Lets nobody in; `open` begins to listen."""
        self._link = link
        self._access: Access | None = None
        self._said: object = None
        self._service = self._home = ""
        self._streams: dict[int, tuple[Stream, asyncio.Task[Any]]] = {}
        self._numbers = itertools.count()
        self._tell: Callable[[Access | None], object] = lambda access: None
        self.told = asyncio.Event()
        """Set as long as the agent has said who may call."""

    def open(self) -> None:
        """Listens to the agent; called on the loop."""
        loop = asyncio.get_running_loop()
        self._tell = lambda access: loop.call_soon_threadsafe(self._take, access)
        self._link.listen(self._heard)

    def close(self) -> None:
        """Listens no more."""
        with contextlib.suppress(ValueError):  # it never did
            self._link.unlisten(self._heard)

    def ask(self, caller: SpiffeId | None, method: str, metadata: Metadata) -> tuple[Refusal | None, str]:
        """Why a call may not go on, None if it may; and which rule in dry run would have made it the opposite."""
        access = self._access
        if access is None:
            return _UNTOLD, ""
        if caller is None:
            return _UNPROVED, ""
        source = str(caller)
        verdict = access.decide(source, method, metadata)
        return None if verdict.allowed else self._denied(caller, source, method), verdict.dry_run

    def _denied(self, caller: SpiffeId, source: str, method: str) -> Refusal:
        who = f"{caller.tenant}/{caller.service}" if caller.trust_domain == self._home and caller.service else source
        why = f"meshwarden explain --from {who} --to {self._service} --method {method}"
        text = f"{who} may not call {method} of {self._service}; why: {why}"
        return Refusal(grpc.StatusCode.PERMISSION_DENIED, text)

    @contextlib.contextmanager
    def watching(self, stream: Stream) -> Iterator[None]:
        """Ends the running task, which serves a stream, when that may not go on."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a handler runs in a task
        number = next(self._numbers)
        self._streams[number] = (stream, task)
        self._end_if_refused(stream, task)  # it may have waited for its limit since it was let in
        try:
            yield
        finally:
            del self._streams[number]

    def _heard(self, config: Config) -> None:
        # On the link's thread, which has the time to read.
        if config.access is self._said and self._service:
            return
        self._said, self._service, self._home = config.access, config.service, config.spiffe_id.trust_domain
        access = Access(config.access, self._home) if config.access is not None else None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._tell(access)

    def _take(self, access: Access | None) -> None:
        self._access = access
        if access is None:
            self.told.clear()
        else:
            self.told.set()
        for stream, task in list(self._streams.values()):
            self._end_if_refused(stream, task)

    @staticmethod
    def _end_if_refused(stream: Stream, task: asyncio.Task[Any]) -> None:
        refusal = stream.refusal()
        if refusal is not None and stream.ended_by is None:
            stream.ended_by = refusal
            task.cancel()


def guarded(handler: Handler, gate: Gate, method: str) -> Handler:
    """A handler of the same shape with the policies before it, and nothing else of ours."""
    inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    made: Any = grpc  # the constructors' types know sync handlers only

    async def enter(context: Any) -> None:
        caller = peer.current()
        found, _ = gate.ask(caller.spiffe_id if caller else None, method, context.invocation_metadata() or ())
        if found is not None:
            await context.abort(found.code, found.message, found.trailing)

    async def single(request_or_requests: Any, context: Any) -> Any:
        await enter(context)
        return await inner(request_or_requests, context)

    async def streaming(request_or_requests: Any, context: Any) -> None:
        await enter(context)
        answer = inner(request_or_requests, context)
        if isinstance(answer, Awaitable):  # a handler that writes by itself
            await answer
            return
        async with contextlib.aclosing(answer) as messages:
            async for message in messages:
                await context.write(message)

    make = {
        (False, False): made.unary_unary_rpc_method_handler,
        (False, True): made.unary_stream_rpc_method_handler,
        (True, False): made.stream_unary_rpc_method_handler,
        (True, True): made.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    guarded_handler: Handler = make(
        streaming if handler.response_streaming else single, handler.request_deserializer, handler.response_serializer
    )
    return guarded_handler
