"""A control plane of its parts: how they are put together, start and stop."""

import contextlib
import random
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from importlib.metadata import version as version_of

import anyio
import grpc
import structlog
from prometheus_client import GCCollector, ProcessCollector
from prometheus_client.registry import Collector

from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import DenyList
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerVerifier, VerifiedPeer
from meshwarden.controlplane.api.metrics.scrape import Scraped
from meshwarden.controlplane.api.metrics.vitals import Vitals
from meshwarden.controlplane.api.server import Api, overload, traced
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.app.engines import Engines
from meshwarden.controlplane.app.gathering import gathering
from meshwarden.controlplane.app.identity import identity
from meshwarden.controlplane.app.publishing import publishing
from meshwarden.controlplane.app.rest import Doors, Rest
from meshwarden.controlplane.app.rollout import rollouts
from meshwarden.controlplane.app.servicers import servicers
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.gather.metrics.own_metrics import OwnMetrics
from meshwarden.controlplane.history.prune import prune_old
from meshwarden.controlplane.identity.crl import Crls
from meshwarden.controlplane.identity.node import banned, removed
from meshwarden.controlplane.place import announce, announce_roots, listening, parse_address
from meshwarden.controlplane.publish.way_back import WayBack
from meshwarden.controlplane.store.compaction import compact_old
from meshwarden.controlplane.store.port import StoreError
from meshwarden.sdk.descriptor import connections
from meshwarden.sdk.mtls.front import Front, FrontLimits
from meshwarden.sdk.mtls.peer import PeerInterceptor, Refused
from meshwarden.sdk.scrape import serve_pages, serve_public_pages, url_of
from meshwarden.sdk.tracing.own_span import Provider, server_interceptor

STOP_GRACE_S = 2.0
_EACH = 3
"""Descriptors of a connection: the caller's socket, and both ends of the way on. Each agent has one connection."""

_LEAVES = 2
"""What is remembered for each connection that there may be: its leaf, and the one before that."""

_log = structlog.get_logger()


class ControlPlane:
    """All parts of one control plane. `run` serves until it is told to stop."""

    def __init__(self, config: Config, engines: Engines, tracing: Provider) -> None:
        """Puts the parts together; nothing runs yet. What `tracing` makes is to go to `take_own_spans`."""
        self._config, self._engines, self._tracing = config, engines, tracing
        rng = random.SystemRandom()
        self._identity = identity(config, engines, rng, tracing)
        self._publishing = publishing(config, engines, self._identity, rng, tracing)
        self._gathering = gathering(config, engines, self._publishing.publisher.mesh, self._identity, rng)
        self._rollouts = rollouts(config, engines, self._publishing, self._gathering, tracing)
        self.take_own_spans = self._gathering.gather.take_own
        """Takes what is traced of this process."""
        self._overload = overload(rng.random)
        self._vitals = Vitals(
            region=config.region,
            version=version_of("meshwarden"),
            state_dir=config.state_dir,
            publisher=self._publishing.publisher,
            sessions=self._publishing.sessions,
            audit=engines.audit,
            division=self._publishing.division,
            overload=self._overload,
            svid=self._identity.serving.svid,
            roots=lambda: self._publishing.rotation.known,
            federation=self._identity.federation,
            clock=utc_now,
        )
        registry = self._gathering.metrics.registry
        process = (ProcessCollector(registry=registry), GCCollector(registry=registry))
        self._own_metrics = self._told(process) if any("point" in one.signals for one in engines.backends) else None

    def _told(self, process: Sequence[Collector]) -> OwnMetrics:
        """What tells backends our own metrics."""
        return OwnMetrics(
            self._gathering.metrics,
            self._gathering.gather.tally,
            (*process, self._gathering.gather.tail),
            self._vitals,
            self._gathering.gather.take_own_points,
            utc_now,
            region=self._config.region,
            interval=timedelta(seconds=self._config.otlp_metrics_interval_s),
        )

    async def run(self) -> None:
        """Opens the doors once there is something to say, and closes them at SIGTERM or SIGINT.

        Raises:
            CannotListen: an address can't be listened on.
        """
        inner = self._config.inner_dir
        inner.mkdir(mode=0o700, exist_ok=True)
        async with AsyncExitStack() as closing:
            closing.callback(self._gathering.durable.close)
            await self._identity.serving.start()
            await self._identity.jwt.open()
            self._engines.region_trust.listen(self._take_keys)
            self._take_keys()
            if self._identity.operator is not None:
                await self._identity.operator.start()
            self._listen_for_roots()
            await self._publishing.rotation.follow()
            limits = FrontLimits(connections=max(FrontLimits.connections, connections(_EACH)))
            front = await closing.enter_async_context(Front(inner / "api.sock", limits, self._no_handshake))
            if self._identity.web is not None:
                await self._identity.web.start()
            rest = Rest(self._config, self._identity, self._no_handshake)
            urls = {"metrics_url": await self._show_metrics(closing), **await self._show_identity(closing)}
            served = servicers(
                self._config,
                self._engines,
                self._identity,
                self._publishing,
                self._gathering,
                self._rollouts,
                rest.place,
            )
            peers = self._peers(Doors(front, rest.front, rest.browsers), limits.connections)
            interceptors = self._interceptors(peers)
            api = Api(str(inner / "api.sock"), served, interceptors)
            await api.start()
            # It is stopped by then, unless something went wrong.
            closing.push_async_callback(api.stop, 0.0)
            await closing.enter_async_context(rest.behind(served, peers, interceptors))
            await self._serve(front, rest, api, urls)

    async def _serve(self, front: Front, rest: Rest, api: Api, urls: Mapping[str, str]) -> None:
        """Runs all that goes on by itself, opens the door, and closes it when told to."""
        async with anyio.create_task_group() as group:
            group.start_soon(compact_old, self._engines.store)
            group.start_soon(WayBack(self._engines.store).run)
            group.start_soon(prune_old, self._engines.store, self._config.history.bounds(), utc_now)
            parts = (
                self._engines.anchor,
                self._engines.authority,
                self._engines.secrets,
                self._publishing.secrets.watch,
                self._publishing.settings,
                self._identity.serving,
                self._identity.web,
                self._identity.jwt,
                self._identity.federation,
                self._identity.endpoint,
                self._publishing.rotation,
                self._gathering.gather,
                self._own_metrics,
                self._gathering.regions,
                self._identity.operator,
                self._identity.login,
                *self._engines.attestors.values(),
            )
            for part in parts:
                if part is not None:
                    group.start_soon(part.run)
            await group.start(self._identity.deny_watch.run)
            await group.start(self._identity.operators.run)
            await group.start(self._publishing.publisher.run)
            await group.start(self._publishing.sessions.run)
            await group.start(self._rollouts.counts.run)
            group.start_soon(self._publishing.division.run)
            group.start_soon(self._rollouts.driver.run)
            host, port = parse_address(self._config.listen)
            with listening("listen", self._config.listen):
                port = await front.serve_tls(host, port, self._identity.serving.context)
            urls = {**urls, **await rest.open()}
            roots_pem = (await self._engines.authority.bundle()).pem()
            announce(self._config.state_dir, f"{host}:{port}", urls, roots_pem)
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for number in signals:
                    _log.info("stopping", signal=signal.Signals(number).name)
                    break
            (self._config.state_dir / "server.json").unlink(missing_ok=True)
            await api.stop(STOP_GRACE_S)
            if self._own_metrics is not None:
                await self._own_metrics.tell()  # what was counted since the last time
            with contextlib.suppress(StoreError):
                await self._engines.anchor.note()
            group.cancel_scope.cancel()

    def _take_keys(self) -> None:
        """Publishes by which keys other regions sign JWT-SVIDs."""
        others = self._engines.region_trust.keys
        self._identity.jwt.trust(
            {other.kid: other.key for other in others}, (other.kid for other in others if other.tainted)
        )

    def _listen_for_roots(self) -> None:
        """Who has to know of changed roots, in this order; nodes come last, so that we trust what they show us."""
        self._publishing.rotation.listen(self._identity.serving.follow)
        if self._identity.operator is not None:
            self._publishing.rotation.listen(self._identity.operator.follow)
        self._publishing.rotation.listen(self._announce_roots)

    async def _announce_roots(self, _: object) -> None:
        announce_roots(self._config.state_dir, (await self._engines.authority.bundle()).pem())

    def _peers(self, doors: Doors, connections: int) -> PeerInterceptor:
        # Each open connection is looked at four times a second: a leaf forgotten meanwhile is verified anew each time.
        capacity = _LEAVES * connections
        verifier = PeerVerifier(self._identity.serving.bundles, utc_now, self._denied, capacity=capacity)
        peers = PeerInterceptor(doors, verifier, self._identity.operators.admit, self._no_call)
        self._identity.deny_watch.listen(lambda deny_list: self._refuse(peers, deny_list))
        self._publishing.sessions.on_removed(lambda node: peers.end(lambda peer: self._removed(peer, node)))
        self._identity.operators.listen(peers.sweep)
        return peers

    def _interceptors(self, peers: PeerInterceptor) -> list[grpc.aio.ServerInterceptor]:
        tracing, validation = server_interceptor(self._tracing, traced()), ValidationInterceptor(self._engines.audit)
        return [peers, self._overload, tracing, validation]

    def _denied(self, peer: VerifiedPeer) -> str | None:
        """Why a peer is refused; a banned node, whose own certificate is denied as well, is told so where it asks."""
        bans = self._publishing.sessions.bans
        node = peer.spiffe_id.node if bans else None
        if node is not None and node in bans and self._removed(peer.spiffe_id, node) is not None:
            return None
        return self._identity.denied(peer)

    def _refuse(self, peers: PeerInterceptor, deny_list: DenyList) -> None:
        """Whoever is denied has no call more, and none that goes on."""
        self._identity.denied.present = deny_list
        peers.sweep()

    def _removed(self, peer: SpiffeId, node: str) -> Refused | None:
        """Why a peer's streams end if it is the node that was banned or evicted; None if it is another."""
        if peer != SpiffeId.for_node(self._config.trust_domain, self._config.region, node):
            return None
        ban = self._publishing.sessions.bans.get(node)
        return banned(ban) if ban is not None else removed(node)

    def _no_handshake(self, caller: str, reason: str) -> None:
        self._engines.audit.note("tls.refused", caller=caller, reason=reason)

    def _no_call(self, caller: str, method: str, reason: str) -> None:
        self._engines.audit.note("rpc.refused", caller=caller, method=method, reason=reason)

    async def _show_metrics(self, closing: AsyncExitStack) -> str:
        """Serves metrics and where else to scrape, until `closing` ends; returns the URL."""
        crls = Crls(self._engines.authority, self._identity.deny_watch, utc_now)
        scraped = Scraped(self._gathering.metrics.registry, self._vitals, self._publishing.sessions.states, crls.get)
        host, port = parse_address(self._config.metrics_listen)
        with listening("metrics_listen", self._config.metrics_listen):
            port = await closing.enter_async_context(serve_pages(host, port, scraped.find))
        return url_of(host, port, "/metrics")

    async def _show_identity(self, closing: AsyncExitStack) -> dict[str, str]:
        """Serves what proves our identities, if it shall, until `closing` ends; returns its URL by name."""
        if self._identity.endpoint is None or self._config.spiffe_endpoint is None:
            return {}
        host, port = parse_address(self._config.spiffe_endpoint.listen)
        with listening("spiffe_endpoint.listen", self._config.spiffe_endpoint.listen):
            port = await closing.enter_async_context(
                serve_public_pages(host, port, self._identity.endpoint.find, self._identity.endpoint.tls)
            )
        return {"spiffe_url": url_of(host, port, "").replace("http:", "https:", 1)}
