"""The workloads' JWT-SVIDs: signed by the control plane, kept in memory, given to whom they belong.

One for each entry and audience. It is given from memory until half of its life is over; then a new one is asked for,
and while the control plane is away the old one is given until it ends. So whoever gets one has a while to use it.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import grpc
import structlog

from meshwarden.agents.workload.workload import Workload
from meshwarden.certs import jose
from meshwarden.certs.jose import InvalidJose
from meshwarden.v1 import node_service_pb2 as node_pb

_log = structlog.get_logger()
# Of an entry: programs choose audiences, and none may fill the memory or take another's place.
_MAX_OF_ENTRY: Final = 64
# What a program is refused for by its own doing, or by its registration's.
_FINAL: Final = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)

SignJwt = Callable[[node_pb.SignJwtRequest], Awaitable[node_pb.SignJwtResponse]]
"""Has a token signed; `Upstream.sign_jwt`."""


class NoToken(Exception):
    """There is no token; the status and the message say why."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class _Held:
    token: str = field(repr=False)
    # Which key has signed it.
    kid: str
    workload: Workload
    # When the next one is asked for, and when this one ends.
    due: datetime
    end: datetime


class JwtSvids:
    """Tokens by entry, identity and audience."""

    def __init__(self, sign: SignJwt, clock: Callable[[], datetime]) -> None:
        """Holds none; `sign` makes them."""
        self._sign, self._clock = sign, clock
        # {(entry, SPIFFE ID): {audience: token}}, the longest unused first
        self._held: dict[tuple[str, str], OrderedDict[tuple[str, ...], _Held]] = {}
        self._asking: dict[tuple[str, str, tuple[str, ...]], asyncio.Lock] = {}
        self._dropped: dict[tuple[str, str, tuple[str, ...]], Workload] = {}
        self._has_dropped = asyncio.Event()

    async def fetch(self, workload: Workload, audience: tuple[str, ...]) -> str:
        """Returns a token for a workload.

        Args:
            workload: whose it is.
            audience: for whom it is, in the order in which it shall stand there.

        Raises:
            NoToken: the control plane refuses, or is away and there is none that is good.
        """
        entry, spiffe_id = workload.entry_name, str(workload.spiffe_id)
        key = (entry, spiffe_id, audience)
        lock = self._asking.setdefault(key, asyncio.Lock())
        try:
            async with lock:  # who asks at the same time gets the same
                held = self._find(entry, spiffe_id, audience)
                if held is None or self._clock() >= held.due:
                    held = await self._renewed(workload, audience, held)
                return held.token
        finally:
            if not lock.locked():
                self._asking.pop(key, None)

    def forget(self, entries: Collection[str]) -> None:
        """Drops what belongs to entries other than these."""
        for key in [key for key in self._held if key[0] not in entries]:
            del self._held[key]

    def leave(self, forsaken: Callable[[str], bool]) -> None:
        """Drops what was signed by a key that is `forsaken`, and has `run` fetch it anew."""
        for (entry, spiffe_id), tokens in self._held.items():
            for audience, held in [item for item in tokens.items() if forsaken(item[1].kid)]:
                del tokens[audience]
                self._dropped[entry, spiffe_id, audience] = held.workload
        if self._dropped:
            _log.info("tokens dropped: their key is tainted or revoked", count=len(self._dropped))
            self._has_dropped.set()

    async def run(self) -> None:
        """Fetches anew what was dropped, until it is cancelled; what fails is fetched when it is asked for."""
        while True:
            await self._has_dropped.wait()
            self._has_dropped.clear()
            while self._dropped:
                (entry, spiffe_id, audience), workload = self._dropped.popitem()
                if (entry, spiffe_id) in self._held:
                    with contextlib.suppress(NoToken):
                        await self.fetch(workload, audience)

    async def _renewed(self, workload: Workload, audience: tuple[str, ...], held: _Held | None) -> _Held:
        tenant, _, name = workload.entry_name.partition("/")
        try:
            answer = await self._sign(node_pb.SignJwtRequest(tenant=tenant, entry=name, audience=audience))
        except (OSError, grpc.RpcError) as error:
            code = error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNAVAILABLE
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            if code in _FINAL:
                self._held.pop((workload.entry_name, str(workload.spiffe_id)), None)
                raise NoToken(code, f"no token for {workload.entry_name}: {reason}") from None
            if held is not None:
                _log.info("token not renewed", entry=workload.entry_name, reason=reason)
                return held
            status = code if code is grpc.StatusCode.RESOURCE_EXHAUSTED else grpc.StatusCode.UNAVAILABLE
            raise NoToken(status, f"no token for {workload.entry_name}: {reason}") from None
        now, end = self._clock(), answer.expire_time.ToDatetime(tzinfo=UTC)
        held = _Held(answer.token, _kid(answer.token), workload, now + (end - now) / 2, end)
        self._keep(workload.entry_name, str(workload.spiffe_id), audience, held)
        return held

    def _find(self, entry: str, spiffe_id: str, audience: tuple[str, ...]) -> _Held | None:
        tokens = self._held.get((entry, spiffe_id), OrderedDict())
        held = tokens.get(audience)
        if held is None or self._clock() >= held.end:
            return None
        tokens.move_to_end(audience)
        return held

    def _keep(self, entry: str, spiffe_id: str, audience: tuple[str, ...], held: _Held) -> None:
        tokens = self._held.setdefault((entry, spiffe_id), OrderedDict())
        tokens[audience] = held
        tokens.move_to_end(audience)
        while len(tokens) > _MAX_OF_ENTRY:
            tokens.popitem(last=False)


def _kid(token: str) -> str:
    """Which key has signed a token; empty if it doesn't say."""
    try:
        return str(jose.read_object(jose.decode(token.partition(".")[0])).get("kid", ""))
    except InvalidJose:
        return ""
