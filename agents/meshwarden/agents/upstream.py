"""The session with the control plane: policy and identities come down, endpoints and acknowledgements go up.

It never gives up: while the control plane is away the agent runs on what it has, and tries again with backoff and full
jitter. What this node needs and has is said as whole sets, again at each new session, so that no message is missed.

When the node's certificate is renewed, the next session is opened beside the present one, which is left only when the
next was welcomed.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, Final

import anyio
import grpc
import structlog
from anyio.abc import TaskGroup

from meshwarden.agents.backoff import Backoff
from meshwarden.agents.channel import Away, ControlPlane, Generation, answering, open_channel
from meshwarden.agents.identity.node import Banned, NodeIdentity, banned
from meshwarden.agents.proof.port import IdentityError, Proof, ProofAway
from meshwarden.agents.session import Downstream, Held, Session
from meshwarden.sdk.mtls.refusal import BANNED, UNKNOWN_NODE
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import node_service_pb2_grpc as node_grpc
from meshwarden.v1 import quota_service_pb2_grpc as quota_grpc
from meshwarden.v1 import report_pb2 as report_pb

_log = structlog.get_logger()
_HANDOVER_S: Final = 2.0
_TIMEOUT_S: Final = 15.0
_WELCOME_S: Final = 10.0
_RENEW_RETRY_S: Final = 30.0
_FIRST_ATTEST_PAUSE_S: Final = 5.0
_LAST_ATTEST_PAUSE_S: Final = 300.0
_EXPORT: Final = "/meshwarden.v1.ReportService/Export"
_LOOK_S: Final = 30.0  # a suspended machine's clock jumps: look at it this often


class Upstream:
    """The agent's side of NodeService, ReportService and QuotaService."""

    def __init__(
        self,
        control_plane: ControlPlane,
        identity: NodeIdentity,
        proof: Proof,
        downstream: Downstream,
        clock: Callable[[], datetime],
        rng: random.Random,
        *,
        held: Held,
        zone: str = "",
        version: str = "",
        metrics_address: str = "",
        renewing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Connects to nothing until `run`; the node's certificate is renewed within `renewing`.

        Each session is told what is `held` first, so that it need not come down again.
        `proof` is what the node attests by again, if its certificate has ended or is no good any more.
        """
        self._proof = proof
        # The control plane knows no node of this certificate.
        self._unknown = False
        self._attest_at_s, self._attest_pause_s = 0.0, _FIRST_ATTEST_PAUSE_S
        self._control_plane, self._identity, self._downstream = control_plane, identity, downstream
        self._clock, self._rng, self._zone, self._version = clock, rng, zone, version
        self._metrics_address, self._renewing = metrics_address, renewing
        self._backoff, self._held = Backoff(rng), held
        self._said: dict[str, node_pb.SyncRequest] = {}
        self._generation: Generation | None = None
        self._session: Session | None = None
        self._rotate = asyncio.Event()
        self._renew = asyncio.Event()
        self._connected = asyncio.Event()
        self.renewal_error = ""
        """Why the node's certificate was not renewed at the last try; empty if it was."""
        self.last_error = "not tried yet"
        """Why there is no session; empty while there is one."""
        self._reasons: dict[str, str] = {}
        identity.listen(self._rotate.set)

    @property
    def connected(self) -> bool:
        """Whether the control plane has welcomed us and the session stands."""
        return self._connected.is_set()

    def set_interest(self, data_planes: Sequence[node_pb.DataPlaneRef]) -> None:
        """Says which configuration this node needs: the whole set."""
        self._say("interest", node_pb.SyncRequest(interest=node_pb.Interest(data_planes=data_planes)))

    def set_endpoints(self, report: node_pb.EndpointReport) -> None:
        """Says which endpoints this node has: the whole set."""
        self._say("endpoints", node_pb.SyncRequest(endpoints=report))

    def set_workloads(self, workloads: Sequence[node_pb.WorkloadState]) -> None:
        """Says which workloads run: the whole set."""
        self._say("workloads", node_pb.SyncRequest(workloads=node_pb.WorkloadReport(workloads=workloads)))

    def set_health(self, health: node_pb.AgentHealth) -> None:
        """Says how the agent does: all of it."""
        self._say("health", node_pb.SyncRequest(health=health))

    def set_root_ack(self, ack: node_pb.BundleAck) -> None:
        """Says which roots this node trusts and uses: the whole set."""
        self._say("bundle_ack", node_pb.SyncRequest(bundle_ack=ack))

    def ack(self, ack: node_pb.ConfigAck) -> None:
        """Says what became of the configuration."""
        self._say("ack", node_pb.SyncRequest(ack=ack))

    def ack_denied(self, revision: int) -> None:
        """Says which deny list is in force here."""
        self._say("deny_ack", node_pb.SyncRequest(deny_ack=node_pb.DenyAck(revision=revision)))

    def answer(self, parts: Sequence[node_pb.DataPlaneAnswer]) -> None:
        """Answers a question, in the present session alone: who asked in another waits no more."""
        if self._session is not None:
            for number, part in enumerate(parts):
                self._session.say(f"answer {number}", node_pb.SyncRequest(data_plane_answer=part))

    async def sign(self, requests: list[node_pb.WorkloadCsr]) -> Sequence[node_pb.SignedWorkload]:
        """Has workload certificates signed, one answer a request.

        Raises:
            Away: there is no way to the control plane.
            grpc.aio.AioRpcError: it does not answer, or refuses.
        """
        async with self._channel() as channel:
            stub = node_grpc.NodeServiceStub(channel)
            request = node_pb.SignWorkloadRequest(requests=requests)
            answer = await stub.SignWorkload(request, timeout=_TIMEOUT_S)
        return answer.results

    async def sign_jwt(self, request: node_pb.SignJwtRequest) -> node_pb.SignJwtResponse:
        """Has a JWT-SVID signed.

        Raises:
            Away: there is no way to the control plane.
            grpc.aio.AioRpcError: it does not answer, or refuses.
        """
        async with self._channel() as channel:
            return await node_grpc.NodeServiceStub(channel).SignJwt(request, timeout=_TIMEOUT_S)

    async def export(self, batch: bytes, timeout_s: float) -> report_pb.ExportResponse:
        """Sends a batch up within `timeout_s`.

        Args:
            batch: a serialised `ExportRequest`.
            timeout_s: how long it may take.

        Raises:
            Away: there is no session.
            grpc.aio.AioRpcError: the batch was not taken.
        """
        if not self.connected:
            raise Away(self.last_error)
        async with self._channel() as channel:
            export: Any = channel.unary_unary(_EXPORT, None, report_pb.ExportResponse.FromString)
            answer: report_pb.ExportResponse = await export(batch, timeout=timeout_s)
        return answer

    def share_addresses(self) -> list[str]:
        """Where shares of limits may be had, one of them: the session's control plane first, then the others."""
        here = self._generation.address if self._generation is not None else self._control_plane.address
        return [here, *(address for address in self._control_plane.addresses if address != here)]

    @contextlib.asynccontextmanager
    async def share(self, address: str) -> AsyncIterator[tuple[Any, asyncio.Event]]:
        """A stream of QuotaService.Share, and the event that says that it should be opened anew on another channel.

        Args:
            address: one of `share_addresses`.

        Raises:
            Away: there is no way to that control plane.
        """
        generation = self._generation
        if generation is None:
            raise Away(self.last_error)
        async with contextlib.AsyncExitStack() as stack:
            if address == generation.address:
                channel = await stack.enter_async_context(generation.use())
            else:
                way, present = self._control_plane.at(address), self._identity.present
                channel = await stack.enter_async_context(answering(way, present.bundle, present.svid))
            call = quota_grpc.QuotaServiceStub(channel).Share()
            try:
                yield call, generation.retiring
            finally:
                call.cancel()

    def renew_now(self) -> None:
        """Renews the node's own certificate at once."""
        self._renew.set()

    async def wait_connected(self) -> None:
        """Returns once there is a session."""
        await self._connected.wait()

    async def run(self) -> None:
        """Keeps the session up until it is cancelled. The node must have an identity.

        Raises:
            Banned: the control plane has banned this node.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._renewals)
            try:
                await self._sessions(group)
            finally:
                self._connected.clear()
                group.cancel_scope.cancel()

    # -- sessions

    async def _sessions(self, group: TaskGroup) -> None:
        while True:
            self._rotate.clear()
            session = await self._open_anywhere(group)
            if session is None:
                await self._pause(self._backoff.next_s())
                continue
            await self._until_over(session, group)

    async def _until_over(self, session: Session, group: TaskGroup) -> None:
        """Stays with a session, and with those that follow it at renewals, until there is none."""
        while True:
            over = asyncio.ensure_future(session.over.wait())
            rotate = asyncio.ensure_future(self._rotate.wait())
            try:
                await asyncio.wait((over, rotate), return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
                rotate.cancel()
            if session.over.is_set():
                self._lost(session.error)
                self._heed(session)
                await self._pause(self._backoff.next_s())
                return
            self._rotate.clear()
            following = await self._open_anywhere(group)
            if following is not None:
                session.leave()
                session = following
            elif not session.over.is_set():
                # The old certificate still serves; the next try comes with backoff, not at once.
                await self._pause(self._rng.uniform(0, _HANDOVER_S))
                self._rotate.set()

    async def _open_anywhere(self, group: TaskGroup) -> Session | None:
        """A session with the first control plane that welcomes us, in their order; None if none does.

        Also at each renewal, so that nodes come back to the one that they prefer, each in its own time.
        """
        for _ in self._control_plane.in_turn():
            if (session := await self._open(group)) is not None:
                return session
        return None

    async def _open(self, group: TaskGroup) -> Session | None:
        """A welcomed session on a channel of its own, which is the present one from then on; None if it failed."""
        try:
            present = self._identity.present
        except IdentityError as error:
            self._lost(str(error))
            return None
        if not self._identity.is_good() or self._unknown:
            if not await self._attest():
                return None
            present = self._identity.present
        channel = open_channel(self._control_plane, present.bundle, present.svid)
        generation = Generation(channel, self._control_plane.address)
        session = Session(generation, self._downstream, self._hello(), self._clock, self._held)
        group.start_soon(session.run)
        try:
            async with asyncio.timeout(_WELCOME_S):
                await session.welcomed_or_over()
        except TimeoutError:
            session.error = f"{self._control_plane.address} did not welcome us within {_WELCOME_S:g} s"
            session.abort()
        if not session.welcomed:
            session.abort()
            self._heed(session)
            group.start_soon(generation.retire)
            if self._session is None or self._session.over.is_set():
                self._lost(session.error)
            return None
        self._swap(session, generation, group)
        self._downstream.welcomed(present.svid.serial)
        return session

    async def _attest(self) -> bool:
        """Proves anew which node this is; who is refused asks again later and later.

        Raises:
            Banned: the control plane has banned this node.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._attest_at_s:
            return False
        try:
            await self._identity.attest(self._proof)
        except Banned:
            raise
        except IdentityError as error:
            self._lost(f"the node has to attest again: {error}")
            self._attest_at_s = loop.time() + self._rng.uniform(0.5, 1.0) * self._attest_pause_s
            self._attest_pause_s = min(2 * self._attest_pause_s, _LAST_ATTEST_PAUSE_S)
            return False
        except (ProofAway, grpc.aio.AioRpcError) as error:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            self._lost(f"the node has to attest again: {reason}")
            return False
        self._unknown, self._attest_pause_s = False, _FIRST_ATTEST_PAUSE_S
        return True

    def _heed(self, session: Session) -> None:
        """Does what the control plane wants that has ended a session.

        Raises:
            Banned: it has banned this node.
        """
        if session.refusal == BANNED:
            raise banned(session.error)
        if session.refusal == UNKNOWN_NODE:
            self._unknown = True

    def _swap(self, session: Session, generation: Generation, group: TaskGroup) -> None:
        old, self._generation, self._session = self._generation, generation, session
        if old is not None:
            group.start_soon(old.retire)
        for name, message in self._said.items():
            session.say(name, message)
        if not self.connected:
            _log.info("connected", control_plane=self._control_plane.address)
        self.last_error = ""
        self._reasons.clear()
        self._backoff.reset()
        self._backoff.spread_over(session.spread_s)
        self._connected.set()

    def _lost(self, reason: str) -> None:
        address, reason = self._control_plane.address, reason or "the control plane ended the session"
        if self.connected or reason != self._reasons.get(address):
            _log.warning("control plane away", control_plane=address, reason=reason)
        self._connected.clear()
        self._reasons[address] = reason
        self.last_error = "; ".join(dict.fromkeys(self._reasons.values()))

    def _say(self, name: str, message: node_pb.SyncRequest) -> None:
        if self._said.get(name) == message:
            return
        self._said[name] = message
        if self._session is not None:
            self._session.say(name, message)

    def _hello(self) -> node_pb.SyncRequest:
        hello = node_pb.NodeHello(agent_version=self._version, zone=self._zone, metrics_address=self._metrics_address)
        hello.now.FromDatetime(self._clock())
        return node_pb.SyncRequest(hello=hello)

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[grpc.aio.Channel]:
        if self._generation is None:
            raise Away(self.last_error)
        async with self._generation.use() as channel:
            yield channel

    async def _pause(self, seconds: float) -> None:
        """Waits, but not beyond a change of the identity, which may be what was missing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rotate.wait()

    # -- the node's own certificate

    async def _renewals(self) -> None:
        due = self._identity.renewal()
        while True:
            left_s = (due - self._clock()).total_seconds()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(left_s, 0.0), _LOOK_S)):
                    await self._renew.wait()
            if not self._renew.is_set() and self._clock() < due:
                continue
            await self._connected.wait()
            self._renew.clear()
            try:
                with self._renewing():
                    async with self._channel() as channel:
                        await self._identity.renew(channel)
                due, self.renewal_error = self._identity.renewal(), ""
            except (OSError, grpc.RpcError, IdentityError) as error:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                self.renewal_error = str(reason)
                _log.warning("node certificate not renewed", reason=reason)
                await asyncio.sleep(_RENEW_RETRY_S * self._rng.uniform(0.5, 1.0))
