"""A control plane of its parts: how they are put together, start and stop."""

import contextlib
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

import anyio
import grpc
import structlog
from prometheus_client import GCCollector, ProcessCollector
from prometheus_client.registry import Collector

from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Denied, DenyList
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api.admin import AdminServicer
from meshwarden.controlplane.api.audit import AuditServicer
from meshwarden.controlplane.api.bundles import BundleDesk
from meshwarden.controlplane.api.health import Health
from meshwarden.controlplane.api.node import NodeServicer
from meshwarden.controlplane.api.operator import OperatorServicer
from meshwarden.controlplane.api.quota import QuotaServicer
from meshwarden.controlplane.api.region import RegionServicer
from meshwarden.controlplane.api.report import ReportServicer
from meshwarden.controlplane.api.resource import ResourceServicer
from meshwarden.controlplane.api.scrape import Scraped
from meshwarden.controlplane.api.server import Api, Servicers, overload, traced
from meshwarden.controlplane.api.spiffe_endpoint import SpiffeEndpoint
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.api.vitals import Vitals
from meshwarden.controlplane.app import gathering
from meshwarden.controlplane.app.engines import AUDIT, Engines, secret_watch, writer
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.gather.own_metrics import OwnMetrics
from meshwarden.controlplane.identity.attestor_token import TokenAttestor
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.identity.crl import Crls
from meshwarden.controlplane.identity.deny import Denies
from meshwarden.controlplane.identity.deny_elsewhere import DeniesElsewhere
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.federation import Federation
from meshwarden.controlplane.identity.issued import Issued
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.node import NodeIdentity, banned, removed
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.operators import LOCAL, OperatorRole, Operators
from meshwarden.controlplane.identity.roster import Roster
from meshwarden.controlplane.identity.rotation import RootRotation
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.place import announce, announce_roots, listening, parse_address
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.roots import Revoked, Roots
from meshwarden.controlplane.publish.secrets import EntrySecrets
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.publish.trust import Trust
from meshwarden.controlplane.quota.division import Division
from meshwarden.controlplane.secrets.live import LiveSettings
from meshwarden.controlplane.secrets.reference import Grants
from meshwarden.controlplane.store.compaction import compact_old
from meshwarden.controlplane.store.port import StoreError
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor, Refused
from meshwarden.sdk.scrape import serve_pages, serve_public_pages, url_of
from meshwarden.sdk.tracing.own_span import Provider, server_interceptor

if TYPE_CHECKING:
    from meshwarden.controlplane.identity.operator_login import OperatorLogin

STOP_GRACE_S = 2.0

_log = structlog.get_logger()


class ControlPlane:
    """All parts of one control plane. `run` serves until it is told to stop."""

    def __init__(self, config: Config, engines: Engines, tracing: Provider) -> None:
        """Puts the parts together; nothing runs yet. What `tracing` makes is to go to `take_own_spans`."""
        self._config, self._engines, self._tracing = config, engines, tracing
        store, audit, authority = engines.store, engines.audit, engines.authority
        domain, region, rng = config.trust_domain, config.region, random.SystemRandom()
        self._serving = ServingIdentity(
            authority, domain, region, audit=audit, clock=utc_now, rng=rng, provider=tracing
        )
        self._operator = _operator(config, engines, rng, tracing)
        self._jwt = JwtAuthority(
            store,
            audit,
            utc_now,
            trust_domain=domain,
            issuer=config.spiffe_endpoint.issuer if config.spiffe_endpoint is not None else "",
            passphrase=engines.jwt_passphrase,
        )
        self._federation = Federation(
            store,
            audit,
            utc_now,
            rng,
            own=self._serving.bundles,
            trust_domain=domain,
            web_roots=str(config.federation_ca_file) if config.federation_ca_file is not None else None,
        )
        self._trust = Trust(self._jwt, self._federation)
        self._document = BundleDocument(engines.store, engines.authority, self._jwt, config.trust_domain)
        self._endpoint = self._spiffe_endpoint()
        self._trails = Trails(self._tracing, utc_now)
        roots = Roots(self._tracing, utc_now)
        self._denied, self._denies = Denied(utc_now), Denies(store, audit, utc_now)
        watch = secret_watch(config, engines.secrets, rng)
        self._settings = LiveSettings(watch, engines.settings)
        self._secrets = EntrySecrets(watch, Grants(config.secrets_of), audit, domain, self._denied.identity)
        self._publisher = Publisher(
            store, trust_domain=domain, audit=audit, trails=self._trails, roots=roots, secrets=self._secrets
        )
        self._division = Division(
            store,
            self._publisher.mesh,
            writer(config),
            time.monotonic,
            lambda: utc_now().timestamp(),
            lambda: rng.getrandbits(62) + 1,
            region,
        )
        self._publisher.listen(self._division.touch)
        self._publisher.listen(lambda impact: self._federate() if impact.trust else None)
        self._sessions = Sessions(self._publisher, store, region=region, clock=utc_now, owner=writer(config))
        self._deny_watch = DenyWatch(store, utc_now)
        self._deny_watch.listen(self._publisher.deny)
        self._rotation = RootRotation(
            authority,
            store,
            self._sessions.trust,
            self._sessions.renew,
            audit,
            utc_now,
            owner=writer(config),
            regions=engines.region_trust.missing,
        )
        self._operators = Operators(authority, store, audit, utc_now, trust_domain=domain, denied=self._denied.identity)
        self._login = _operator_login(config, engines, self._operators)
        self._metrics = Metrics(idle=timedelta(seconds=config.metrics_idle_s))
        self._durable = Durable(config.state_dir / "gather.sqlite")
        self._gather = Gather(
            self._durable,
            Ledger(self._durable, domain, utc_now, region=region),
            self._metrics,
            engines.backends,
            utc_now,
            rng,
            owns=self._publisher.mesh.owns,
            trust_domain=domain,
            region=region,
            traces_retention=timedelta(seconds=config.traces_keep_s),
            traces_max_bytes=config.traces_max_bytes,
            traces_of=gathering.traces_of(config),
            tail=gathering.tail(config, self._publisher.mesh),
        )
        self.take_own_spans = self._gather.take_own
        """Takes what is traced of this process."""
        elsewhere = DeniesElsewhere(self._denies, self._deny_watch, utc_now)
        self._regions, self._remote = gathering.regions(
            config,
            self._durable,
            self._gather,
            self._metrics,
            self._serving,
            rng,
            (engines.region_trust.ask, partial(gathering.ask_denies, elsewhere)),
        )
        self._overload = overload(rng.random)
        self._vitals = Vitals(
            region=region,
            version=version_of("meshwarden"),
            state_dir=config.state_dir,
            publisher=self._publisher,
            sessions=self._sessions,
            audit=audit,
            division=self._division,
            overload=self._overload,
            svid=self._serving.svid,
            roots=lambda: self._rotation.known,
            federation=self._federation,
            clock=utc_now,
        )
        registry = self._metrics.registry
        process = (ProcessCollector(registry=registry), GCCollector(registry=registry))
        self._own_metrics = self._told(process) if any("point" in one.signals for one in engines.backends) else None

    def _federate(self) -> None:
        """Tells the federation which trust domains there are."""
        self._federation.want(self._publisher.mesh.trust_domains.values())

    def _spiffe_endpoint(self) -> SpiffeEndpoint | None:
        """What shows others what proves our identities, if something shall."""
        config = self._config.spiffe_endpoint
        if config is None:
            return None
        files = (config.certificate, config.key) if config.certificate is not None and config.key is not None else None
        return SpiffeEndpoint(self._document, self._serving.svid, issuer=config.issuer, files=files)

    def _told(self, process: Sequence[Collector]) -> OwnMetrics:
        """What tells backends our own metrics."""
        return OwnMetrics(
            self._metrics,
            self._gather.tally,
            (*process, self._gather.tail),
            self._vitals,
            self._gather.take_own_points,
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
            closing.callback(self._durable.close)
            await self._serving.issue()
            await self._jwt.open()
            self._engines.region_trust.listen(self._take_keys)
            self._take_keys()
            if self._operator is not None:
                await self._operator.issue()
            self._listen_for_roots()
            await self._rotation.follow()
            front = await closing.enter_async_context(Front(inner / "api.sock", on_refused=self._no_handshake))
            urls = {"metrics_url": await self._show_metrics(closing), **await self._show_identity(closing)}
            api = Api(str(inner / "api.sock"), self._servicers(), self._interceptors(front))
            await api.start()
            # It is stopped by then, unless something went wrong.
            closing.push_async_callback(api.stop, 0.0)
            await self._serve(front, api, urls)

    async def _serve(self, front: Front, api: Api, urls: Mapping[str, str]) -> None:
        """Runs all that goes on by itself, opens the door, and closes it when told to."""
        async with anyio.create_task_group() as group:
            group.start_soon(compact_old, self._engines.store)
            parts = (
                self._engines.anchor,
                self._engines.authority,
                self._engines.secrets,
                self._secrets.watch,
                self._serving,
                self._jwt,
                self._federation,
                self._endpoint,
                self._rotation,
                self._gather,
                self._own_metrics,
                self._regions,
                self._operator,
                self._login,
                *self._engines.attestors.values(),
            )
            for part in parts:
                if part is not None:
                    group.start_soon(part.run)
            await group.start(self._deny_watch.run)
            await group.start(self._operators.run)
            await group.start(self._publisher.run)
            await group.start(self._sessions.run)
            group.start_soon(self._division.run)
            host, port = parse_address(self._config.listen)
            with listening("listen", self._config.listen):
                port = await front.serve_tls(host, port, self._serving.context)
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
        self._jwt.trust({other.kid: other.key for other in others}, (other.kid for other in others if other.tainted))

    def _listen_for_roots(self) -> None:
        """Who has to know of changed roots, in this order; nodes come last, so that we trust what they show us."""
        self._rotation.listen(self._serving.follow)
        if self._operator is not None:
            self._rotation.listen(self._operator.follow)
        self._rotation.listen(self._announce_roots)

    async def _announce_roots(self, _: object) -> None:
        announce_roots(self._config.state_dir, (await self._engines.authority.bundle()).pem())

    def _interceptors(self, front: Front) -> list[grpc.aio.ServerInterceptor]:
        verifier = PeerVerifier(self._serving.bundles, utc_now, self._denied)
        peers = PeerInterceptor(front, verifier, self._operators.admit, self._no_call)
        self._deny_watch.listen(lambda deny_list: self._refuse(peers, deny_list))
        self._sessions.on_removed(lambda node: peers.end(lambda peer: self._removed(peer, node)))
        self._operators.listen(peers.sweep)
        tracing, validation = server_interceptor(self._tracing, traced()), ValidationInterceptor(self._engines.audit)
        return [peers, self._overload, tracing, validation]

    def _refuse(self, peers: PeerInterceptor, deny_list: DenyList) -> None:
        """Whoever is denied has no call more, and none that goes on."""
        self._denied.present = deny_list
        peers.sweep()

    def _removed(self, peer: SpiffeId, node: str) -> Refused | None:
        """Why a peer's streams end if it is the node that was banned or evicted; None if it is another."""
        if peer != SpiffeId.for_node(self._config.trust_domain, self._config.region, node):
            return None
        ban = self._sessions.bans.get(node)
        return banned(ban) if ban is not None else removed(node)

    def _no_handshake(self, caller: str, reason: str) -> None:
        self._engines.audit.note("tls.refused", caller=caller, reason=reason)

    def _no_call(self, caller: str, method: str, reason: str) -> None:
        self._engines.audit.note("rpc.refused", caller=caller, method=method, reason=reason)

    def _servicers(self) -> Servicers:
        config, engines, domain = self._config, self._engines, self._config.trust_domain
        tokens = JoinTokens(engines.store, utc_now)
        nodes = NodeIdentity(
            engines.authority,
            engines.store,
            {"join_token": TokenAttestor(tokens), **engines.attestors},
            engines.audit,
            utc_now,
            trust_domain=domain,
            region=config.region,
            denied=self._denied.identity,
            jwt=self._jwt,
            limits=config.limits.paces(),
            known=self._sessions.known,
        )
        node = NodeServicer(nodes, self._publisher, self._sessions, engines.authority, trust=self._trust)
        self._rotation.listen(node.tell_bundle)
        self._rotation.listen(Revoked(self._rotation.known, self._publisher.cut, utc_now).follow)
        admin = AdminServicer(
            trust_domain=domain,
            region=config.region,
            version=version_of("meshwarden"),
            authority=engines.authority,
            store=engines.store,
            tokens=tokens,
            publisher=self._publisher,
            sessions=self._sessions,
            gather=self._gather,
            remote=self._remote,
            regions=self._regions,
            division=self._division,
            audit=engines.audit,
            denies=self._denies,
            deny_watch=self._deny_watch,
            rotation=self._rotation,
            jwt=self._jwt,
            bundles=BundleDesk(self._document, self._federation, config.trust_domain),
            roster=Roster(engines.store, self._denies, Issued(engines.store, utc_now), engines.audit, utc_now),
            health=Health(
                state_dir=config.state_dir,
                authority=engines.authority,
                audit=engines.audit,
                gather=self._gather,
                secrets=self._secrets.watch.faults,
                settings=self._settings.faults,
                svid=self._serving.svid,
                roots=lambda: self._rotation.known,
            ),
            clock=utc_now,
        )
        return Servicers(
            admin=admin,
            audit=AuditServicer(config.state_dir / AUDIT, engines.anchor),
            node=node,
            operator=OperatorServicer(self._operators, engines.authority, engines.store, domain, utc_now, self._login),
            quota=QuotaServicer(nodes, self._division, self._publisher),
            region=RegionServicer(
                self._gather.ledger,
                self._gather.tail,
                engines.authority,
                self._rotation,
                self._deny_watch,
                self._jwt,
                (domain, config.region),
            ),
            report=ReportServicer(self._gather, nodes),
            resource=ResourceServicer(
                engines.store, utc_now, config.region, engines.audit, self._trails, domain, self._secrets.grants
            ),
        )

    async def _show_metrics(self, closing: AsyncExitStack) -> str:
        """Serves metrics and where else to scrape, until `closing` ends; returns the URL."""
        crls = Crls(self._engines.authority, self._deny_watch, utc_now)
        scraped = Scraped(self._metrics.registry, self._vitals, self._sessions.states, crls.get)
        host, port = parse_address(self._config.metrics_listen)
        with listening("metrics_listen", self._config.metrics_listen):
            port = await closing.enter_async_context(serve_pages(host, port, scraped.find))
        return url_of(host, port, "/metrics")

    async def _show_identity(self, closing: AsyncExitStack) -> dict[str, str]:
        """Serves what proves our identities, if it shall, until `closing` ends; returns its URL by name."""
        if self._endpoint is None or self._config.spiffe_endpoint is None:
            return {}
        host, port = parse_address(self._config.spiffe_endpoint.listen)
        with listening("spiffe_endpoint.listen", self._config.spiffe_endpoint.listen):
            port = await closing.enter_async_context(
                serve_public_pages(host, port, self._endpoint.find, self._endpoint.tls)
            )
        return {"spiffe_url": url_of(host, port, "").replace("http:", "https:", 1)}


def _operator_login(config: Config, engines: Engines, operators: Operators) -> "OperatorLogin | None":
    """What lets operators in by Vault, if something shall."""
    chosen = config.operator_login
    if chosen is None or engines.logins is None:
        return None
    # Most control planes start without it, and the sooner.
    from meshwarden.controlplane.identity.operator_login import Grant, OperatorLogin

    return OperatorLogin(
        engines.logins,
        operators,
        engines.audit,
        utc_now,
        grants=[Grant(OperatorRole[one.role.upper()], one.tenant, one.policy, one.entity) for one in chosen.grants],
        mounts=chosen.mounts,
        name=chosen.template(),
        ttl=timedelta(seconds=chosen.ttl_s),
    )


def _operator(config: Config, engines: Engines, rng: random.Random, tracing: Provider) -> OperatorCredential | None:
    if config.operator_directory is None:
        return None
    return OperatorCredential(
        engines.authority,
        config.trust_domain,
        LOCAL,
        config.operator_directory,
        audit=engines.audit,
        clock=utc_now,
        rng=rng,
        provider=tracing,
    )
