"""What each data plane on the agent's socket gets, and what it said to it.

Who asks is known by the kernel's word alone: its connection leads to a registered workload, and the process decides
whether it is that workload's program or its Envoy. What a node message claims is not read, except to tell an Envoy that
a program started by itself from a gRPC client: both are the same workload and so may have the same.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import grpc
import structlog

from meshwarden.agents.envoy import runtime
from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.workload.attest import Attestor, Unidentified
from meshwarden.agents.workload.leaving import Leaving, without_callers
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.secret import Secrets
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.xds import sds
from meshwarden.agents.xds.fit import fits
from meshwarden.agents.xds.in_force import InForce
from meshwarden.agents.xds.interest import Interest, client_of, is_home_only
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.certs.svid import X509Svid
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.server import StreamRefused
from meshwarden.xds.snapshot import Snapshot

_log = structlog.get_logger()
_ADS: Final = Share(part=0.25, burst_s=2.0)  # of a processor, for the streams of one workload
_MAX_STREAMS: Final = 1024  # of one workload
_MAX_NACKS: Final = 256
_MAX_PENDING: Final = 4096
_MAX_REASON: Final = 4096
_MAX_NAME: Final = 512
_MAX_NAMED: Final = 8  # resources of which one is bad and nobody knows which


class Acknowledge(Protocol):
    """Where acknowledgements go; `Upstream.ack`."""

    def __call__(self, ack: node_pb.ConfigAck, /) -> object:
        """Takes what became of the configuration."""


class DataPlanes:
    """The SnapshotSource of the agent's ADS server."""

    def __init__(
        self,
        attestor: Attestor,
        registry: Registry,
        scopes: ScopeStore,
        credentials: Credentials,
        envoy_pid: Callable[[str], int],
        acknowledge: Acknowledge,
        interest: Interest,
        in_force: InForce,
        secrets: Secrets,
        leaving: Leaving,
    ) -> None:
        """Serves what `scopes` and `credentials` hold.

        Args:
            attestor: knows who is behind an RPC.
            registry: knows who runs.
            scopes: the configuration.
            credentials: for the secrets of Envoys.
            envoy_pid: the process of a workload's Envoy, 0 if it has none.
            acknowledge: takes what became of a revision.
            interest: knows the data planes of a workload, and is told which clients they have.
            in_force: is told what each data plane has taken.
            secrets: for Envoys too.
            leaving: whose servers are about to stop.
        """
        self._secrets, self._leaving = secrets, leaving
        self._in_force = in_force
        self._attestor = attestor
        self._registry = registry
        self._scopes = scopes
        self._credentials = credentials
        self._envoy_pid = envoy_pid
        self._acknowledge = acknowledge
        self._interest = interest
        self._fitting: dict[str, tuple[Snapshot, Workload, bool]] = {}
        self._clients: set[DataPlaneClient] = set()
        self._unsettled: set[DataPlaneClient] = set()
        self._streams: Counter[str] = Counter()  # {workload id: streams}
        self._is_news = True  # something to acknowledge that was not, perhaps
        self.allowance = Allowance(_ADS)
        """What workloads may cost."""
        self._watchers: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self._merged: dict[str, tuple[object, Snapshot]] = {}
        self._last_ack: node_pb.ConfigAck | None = None
        registry.listen(self._notify)
        scopes.listen(self._notify)
        credentials.listen(self._notify)
        secrets.listen(self._notify)
        leaving.listen(self._notify)

    async def open(self, context: grpc.aio.ServicerContext[Any, Any], node_message: Any) -> "DataPlaneClient":
        """The client behind an RPC.

        Raises:
            StreamRefused: if it is not a workload of this node; says what to do.
        """
        try:
            workload = await self._attestor.registered(context)
            pid = self._attestor.connection(context.peer()).pid
        except Unidentified as error:
            raise StreamRefused(grpc.StatusCode.PERMISSION_DENIED, str(error)) from None
        if self._streams[workload.id] >= _MAX_STREAMS:
            raise StreamRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{workload.id} has {_MAX_STREAMS} streams of configuration open already: gRPC opens one for each "
                "target of a process; call through an Envoy, or call fewer services from one workload",
            )
        is_envoy = pid == self._envoy_pid(workload.id) or getattr(node_message, "user_agent_name", "") == "envoy"
        name = client_of(node_message)
        client = DataPlaneClient(self, workload, "envoy" if is_envoy else "grpc", (name, is_home_only(name, pid)))
        self._clients.add(client)
        self._streams[workload.id] += 1
        if client.pending():
            self._unsettled.add(client)
        self._hear(client.data_plane)
        return client

    def snapshot(self, workload: Workload, data_plane: str) -> Snapshot | None:
        """What a data plane is to have: one object as long as nothing changes.

        None if it is not known, and for what is left of a workload that has ended, which gets nothing new.
        """
        if self._registry.workloads.get(workload.id) is not workload:
            return None
        scoped = self._scopes.snapshot(data_plane)
        if scoped is None or not data_plane.endswith("/envoy"):
            return scoped if scoped is None or workload not in self._leaving else self._left(scoped, data_plane)
        if not self._fits(scoped, workload, data_plane):
            return None
        # An Envoy lends its certificate to whoever may open its socket: it waits until the program was seen to be the
        # one that its entry wants.
        svid = self._credentials.svid(workload.id) if self._registry.is_admitted(workload.id) else None
        if svid is None:
            return None
        bundle, foreign = self._credentials.bundle(), self._credentials.foreign()
        ratio = self._registry.trace_ratio(workload)
        secrets = self._secrets.of(workload.entry_name)
        speakers = self._speakers(workload) if workload.is_ingress else {}
        key = (scoped, svid, bundle, foreign, ratio, secrets, speakers)
        known = self._merged.get(data_plane)
        if known is None or known[0] != key:
            given = [sds.generic_secret(one.name, one.value) for one in secrets if one.value]
            if workload.is_ingress:
                made = (sds.certificate_secret(one.name, one.value) for one in secrets)
                given += [*sds.speaker_secrets(speakers), *(one for one in made if one is not None)]
            roots = sds.roots_secrets(bundle, foreign)
            own = (sds.own_secret(svid), *roots, *sds.system_secrets(), runtime.sampling(ratio), *given)
            resources = [item for named in scoped.resources.values() for item in named.values()]
            before = known[1] if known is not None else None
            known = self._merged[data_plane] = (key, Snapshot.of((*resources, *own), before=before))
        return known[1]

    def _left(self, scoped: Snapshot, data_plane: str) -> Snapshot:
        known = self._merged.get(data_plane)
        if known is None or known[0] is not scoped:
            known = self._merged[data_plane] = (scoped, without_callers(scoped))
        return known[1]

    def _speakers(self, workload: Workload) -> dict[str, X509Svid]:
        """As whom else an ingress calls: `{tenant: certificate}`."""
        found = {tenant: self._credentials.svid(one.id) for tenant, one in self._registry.speakers(workload).items()}
        return {tenant: svid for tenant, svid in found.items() if svid is not None}

    def _fits(self, scoped: Snapshot, workload: Workload, data_plane: str) -> bool:
        known = self._fitting.get(workload.id)
        if known is None or known[0] is not scoped or known[1] is not workload:
            ref = next((ref for ref in self._interest.refs(workload) if ref.id == data_plane), None)
            known = self._fitting[workload.id] = (scoped, workload, ref is not None and fits(scoped, ref))
            if not known[2]:
                _log.warning("config withheld", data_plane=data_plane, reason="it is for other addresses")
        return known[2]

    def waiting(self) -> set[str]:
        """The ids of the data planes whose answer is outstanding."""
        return {client.data_plane for client in self._unsettled}

    def connected(self) -> set[str]:
        """The ids of the data planes that are here."""
        return {client.data_plane for client in self._clients}

    def had(self, data_plane: str) -> tuple[list[Snapshot], list[node_pb.Nack]]:
        """What each stream of a data plane has answered to, and what it refuses; without a stream, nothing."""
        clients = [client for client in self._clients if client.data_plane == data_plane]
        snapshots = [client.answered for client in clients if client.answered is not None]
        return snapshots, [nack for client in clients for nack in client.refusals()]

    async def wait(self) -> None:
        """Returns after the next change of anything."""
        await self._changed.wait()

    def leave(self, client: "DataPlaneClient") -> None:
        """A client's stream has ended: it holds nothing up any more."""
        self._clients.discard(client)
        self._unsettled.discard(client)
        self._streams[client.workload_id] -= 1
        if not self._streams[client.workload_id]:
            del self._streams[client.workload_id]
        if not any(other.data_plane == client.data_plane for other in self._clients):
            self._merged.pop(client.data_plane, None)
            self._fitting.pop(client.workload_id, None)
        self._hear(client.data_plane)
        self._is_news = True
        self._conclude()

    def _hear(self, data_plane: str) -> None:
        self._interest.heard(data_plane, [one.kind for one in self._clients if one.data_plane == data_plane])

    def watch(self, callback: Callable[[], None]) -> None:
        """Calls back whenever a data plane may have answered."""
        self._watchers.append(callback)

    def settled(self, client: "DataPlaneClient", *, is_news: bool) -> None:
        """A client has answered to what it was told, perhaps with other refusals than before."""
        self._is_news |= is_news
        if client.pending():
            return
        self._is_news |= client in self._unsettled
        self._unsettled.discard(client)
        if self._is_news:
            self._take(client)
            self._conclude()

    def _take(self, client: "DataPlaneClient") -> None:
        if self._scopes.revision and not client.refusals():
            self._in_force.taken(client.data_plane, self._scopes.revision)

    def _conclude(self) -> None:
        """Acknowledges the revision in force once every connected data plane has answered to it.

        A data plane that is not connected holds nothing up: it gets the newest when it comes.
        """
        for callback in self._watchers:
            callback()
        revision = self._scopes.revision
        if not revision or self._unsettled or not self._is_news:
            return
        self._is_news = False
        self._say(node_pb.ConfigAck(revision=revision, nacks=self._nacks()))

    def tell_pending(self) -> None:
        """Says which data planes do not answer to the revision in force, for the others; called now and then."""
        revision, last = self._scopes.revision, self._last_ack.revision if self._last_ack is not None else 0
        pending = sorted(self.waiting())
        if pending and last < revision:
            ack = node_pb.ConfigAck(revision=last, nacks=self._nacks(), pending_revision=revision)
            ack.pending.extend(pending[:_MAX_PENDING])
            self._say(ack)

    def _nacks(self) -> list[node_pb.Nack]:
        nacks = [nack for client in self._clients for nack in client.refusals()]
        nacks.sort(key=lambda nack: (nack.data_plane, nack.type_url, nack.resource))
        for nack in nacks:
            nack.taken_revision = self._in_force.newest(nack.data_plane)
        return nacks[:_MAX_NACKS]

    def _say(self, ack: node_pb.ConfigAck) -> None:
        if ack != self._last_ack:
            self._last_ack = ack
            self._acknowledge(ack)

    def _notify(self) -> None:
        # Who waits holds the old event; whoever comes next waits for the next change.
        event, self._changed = self._changed, asyncio.Event()
        event.set()
        self._unsettled = {client for client in self._clients if client.pending()}
        for client in self._clients - self._unsettled:
            self._take(client)
        self._is_news = True
        self._conclude()


class DataPlaneClient:
    """One ADS stream of a data plane."""

    def __init__(self, planes: DataPlanes, workload: Workload, dialect: str, kind: tuple[str, bool]) -> None:
        self._planes = planes
        self.kind = kind
        """What it is, and whether it knows our own trust domain alone."""
        self._workload = workload
        self.workload_id = workload.id
        self.data_plane = f"{workload.id}/{dialect}"
        self._settled: Snapshot | None = None
        self._refusals: list[node_pb.Nack] = []
        self._is_news = False

    def snapshot(self) -> Snapshot | None:
        """What it is to have; None while that is not known, and the server then withholds its answers."""
        return self._planes.snapshot(self._workload, self.data_plane)

    async def changed(self, after: Snapshot | None) -> Snapshot:
        """The next snapshot that is not `after`."""
        while (now := self.snapshot()) is None or now is after:
            await self._planes.wait()
        return now

    def acked(self, type_url: str, version: str) -> None:
        """It took a push; `settled` says when it has taken or refused all there is."""

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        """What it refuses at present; of these resources it keeps what it had."""
        self._is_news = True
        before, self._refusals = self._refusals, [self._nack(refusal) for refusal in refusals[:_MAX_NACKS]]
        for nack in self._refusals:
            if nack not in before:
                _log.warning(
                    "config refused",
                    data_plane=nack.data_plane,
                    type=nack.type_url,
                    resource=nack.resource,
                    reason=nack.message,
                )
        if before and not self._refusals:
            _log.info("config taken again", data_plane=self.data_plane)

    def _nack(self, refusal: Refusal) -> node_pb.Nack:
        message, (name, *others) = refusal.message, refusal.names or ("",)
        if others:
            more = f" and {len(refusal.names) - _MAX_NAMED} more" if len(refusal.names) > _MAX_NAMED else ""
            message = f"one of {', '.join(refusal.names[:_MAX_NAMED])}{more}: {message}"
        return node_pb.Nack(
            data_plane=self.data_plane[:255],
            type_url=refusal.type_url[:255],
            version=refusal.version[:255],
            message=message[:_MAX_REASON],
            resource="" if others else name[:_MAX_NAME],
        )

    @property
    def answered(self) -> Snapshot | None:
        """What it has answered to last; None if it has not yet."""
        return self._settled

    def settled(self, snapshot: Snapshot) -> None:
        """It has answered to all that it asks for of `snapshot`."""
        self._settled, is_news, self._is_news = snapshot, self._is_news, False
        self._planes.settled(self, is_news=is_news)

    async def admit(self) -> None:
        """Returns when its workload has not cost too much."""
        await self._planes.allowance.wait(self.workload_id)

    def charge(self) -> AbstractContextManager[object]:
        """What is done inside is done for its workload."""
        return self._planes.allowance.spend(self.workload_id)

    def close(self) -> None:
        """The stream has ended."""
        self._planes.leave(self)

    def pending(self) -> bool:
        """Whether an answer to what it is to have is outstanding; while that is not known there is none."""
        now = self.snapshot()
        return now is not None and now is not self._settled

    def refusals(self) -> list[node_pb.Nack]:
        """What it refuses at present."""
        return self._refusals
