"""The composition root: the one place that picks engines and puts the control plane together.

Order of start: store, audit, authority, own certificate, services, publisher, then the listener, so that nobody is
answered before there is something to say. `<state_dir>/server.json` says where it listens, once it does.
"""

import fcntl
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from importlib.metadata import version as version_of
from pathlib import Path

import anyio
import structlog
from prometheus_client import GCCollector, ProcessCollector

from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import Authority, OnIssued
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane import log
from meshwarden.controlplane.api.admin import AdminServicer
from meshwarden.controlplane.api.health import Health
from meshwarden.controlplane.api.node import NodeServicer
from meshwarden.controlplane.api.region import RegionServicer
from meshwarden.controlplane.api.report import ReportServicer
from meshwarden.controlplane.api.resource import ResourceServicer
from meshwarden.controlplane.api.scrape import Scraped
from meshwarden.controlplane.api.server import Api, Servicers, traced
from meshwarden.controlplane.api.validation import ValidationInterceptor
from meshwarden.controlplane.api.vitals import Vitals
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.config import Config, DiskAuthorityConfig, OtlpConfig, VaultAuthorityConfig, VaultConfig
from meshwarden.controlplane.gather.backend import Backend, GrpcTransport, HttpTransport
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.gather.remote import Remote
from meshwarden.controlplane.gather.resource import OWN_NAME
from meshwarden.controlplane.identity.authorize import admit
from meshwarden.controlplane.identity.issuing import recorder
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.puller import Own, Peer, Puller
from meshwarden.controlplane.regions.regions import Regions
from meshwarden.controlplane.secrets.resolver import Secrets
from meshwarden.controlplane.store.compaction import compact_old
from meshwarden.controlplane.store.port import Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.descriptor import allow_descriptors
from meshwarden.sdk.front import Front
from meshwarden.sdk.own_span import own_provider, server_interceptor
from meshwarden.sdk.peer import PeerInterceptor
from meshwarden.sdk.scrape import serve_pages, url_of

STOP_GRACE_S = 2.0
# What the configuration calls signals, and we call things.
SIGNALS = {"traces": "span", "metrics": "point", "logs": "log"}

_log = structlog.get_logger()


class AlreadyRunning(Exception):
    """Another control plane holds the state directory."""


class CannotListen(Exception):
    """An address is taken, or is none of this machine's."""


def run_server(config: Config) -> None:
    """Runs a control plane until SIGTERM or SIGINT.

    Raises:
        AlreadyRunning: another process has this state directory.
        CannotListen: an address can't be listened on.
    """
    log.configure()
    allow_descriptors()
    anyio.run(serve, config)


async def serve(config: Config) -> None:
    """Puts a control plane together and serves until it is told to stop.

    Raises:
        AlreadyRunning: another process has this state directory.
        CannotListen: an address can't be listened on.
    """
    async with AsyncExitStack() as stack:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(_alone(config.state_dir / "server.lock"))
        store = await stack.enter_async_context(open_store(config.state_dir / "store.sqlite"))
        audit = CountedAuditLog(
            await stack.enter_async_context(FileAuditLog.open(config.state_dir / "audit.jsonl", utc_now))
        )
        secrets = Secrets(vault=config.vault or _vault_of(config))
        authority = await stack.enter_async_context(_authority(config, secrets, recorder(audit)))
        await _compose(config, store, audit, secrets, authority)


async def _compose(
    config: Config, store: Store, audit: CountedAuditLog, secrets: Secrets, authority: Authority
) -> None:
    rng = random.SystemRandom()
    serving = ServingIdentity(authority, config.trust_domain, config.region, audit=audit, clock=utc_now, rng=rng)
    await serving.issue()
    operator = _operator(config, authority, audit, rng)
    if operator is not None:
        await operator.issue()
    tracing = own_provider(OWN_NAME, lambda body, count: gather.take_own(body, count))
    trails = Trails(tracing, utc_now)
    publisher = Publisher(store, trust_domain=config.trust_domain, audit=audit, trails=trails)
    sessions = Sessions(publisher, store, region=config.region, clock=utc_now)
    metrics = Metrics(idle=timedelta(seconds=config.metrics_idle_s))
    durable = Durable(config.state_dir / "gather.sqlite")
    gather = Gather(
        durable,
        Ledger(durable, config.trust_domain, utc_now, region=config.region),
        metrics,
        [await _backend(backend, secrets) for backend in config.otlp],
        utc_now,
        rng,
        owns=publisher.mesh.owns,
        trust_domain=config.trust_domain,
        region=config.region,
        traces_retention=timedelta(seconds=config.traces_keep_s),
        traces_max_bytes=config.traces_max_bytes,
    )
    regions, remote = _regions(config, durable, gather, metrics, serving, rng)
    tokens = JoinTokens(store, utc_now)
    nodes = NodeIdentity(
        authority, store, tokens, audit, utc_now, trust_domain=config.trust_domain, region=config.region
    )
    servicers = Servicers(
        admin=AdminServicer(
            trust_domain=config.trust_domain,
            region=config.region,
            version=version_of("meshwarden"),
            authority=authority,
            tokens=tokens,
            publisher=publisher,
            sessions=sessions,
            gather=gather,
            remote=remote,
            regions=regions,
            audit=audit,
            health=Health(
                state_dir=config.state_dir,
                authority=authority,
                audit=audit,
                gather=gather,
                svid=serving.svid,
                bundles=serving.bundles,
            ),
            clock=utc_now,
        ),
        node=NodeServicer(nodes, publisher, sessions, authority),
        region=RegionServicer(gather.ledger, config.trust_domain, config.region),
        report=ReportServicer(gather, nodes),
        resource=ResourceServicer(store, utc_now, config.region, audit, trails),
    )
    scraped = _scraped(config, metrics, publisher, sessions, audit, serving)
    config.inner_dir.mkdir(mode=0o700, exist_ok=True)

    def no_handshake(caller: str, reason: str) -> None:
        audit.note("tls.refused", caller=caller, reason=reason)

    def no_call(caller: str, method: str, reason: str) -> None:
        audit.note("rpc.refused", caller=caller, method=method, reason=reason)

    async with Front(config.inner_dir / "api.sock", on_refused=no_handshake) as front, AsyncExitStack() as closing:
        closing.callback(durable.close)
        peers = PeerInterceptor(front, PeerVerifier(serving.bundles, utc_now), admit, no_call)
        host, port = _address(config.metrics_listen)
        with _listening("metrics_listen", config.metrics_listen):
            port = await closing.enter_async_context(serve_pages(host, port, scraped.find))
        url = url_of(host, port, "/metrics")
        own_spans = server_interceptor(tracing, traced())
        interceptors = [peers, own_spans, ValidationInterceptor(audit)]
        api = Api(str(config.inner_dir / "api.sock"), servicers, interceptors)
        await api.start()
        # It is stopped by then, unless something went wrong.
        closing.push_async_callback(api.stop, 0.0)
        await _run(config, store, front, api, serving, operator, publisher, sessions, gather, regions, authority, url)


async def _run(
    config: Config,
    store: Store,
    front: Front,
    api: Api,
    serving: ServingIdentity,
    operator: OperatorCredential | None,
    publisher: Publisher,
    sessions: Sessions,
    gather: Gather,
    regions: Regions,
    authority: Authority,
    metrics_url: str,
) -> None:
    """Runs all that goes on by itself, opens the door, and closes it when told to."""
    async with anyio.create_task_group() as group:
        group.start_soon(compact_old, store)
        group.start_soon(authority.run)
        group.start_soon(serving.run)
        group.start_soon(gather.run)
        group.start_soon(regions.run)
        await group.start(publisher.run)
        await group.start(sessions.run)
        if operator is not None:
            group.start_soon(operator.run)
        host, port = _address(config.listen)
        with _listening("listen", config.listen):
            port = await front.serve_tls(host, port, serving.context)
        _announce(config.state_dir, f"{host}:{port}", metrics_url, (await authority.bundle()).pem())
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                _log.info("stopping", signal=signal.Signals(number).name)
                break
        (config.state_dir / "server.json").unlink(missing_ok=True)
        await api.stop(STOP_GRACE_S)
        group.cancel_scope.cancel()


def _vault_of(config: Config) -> VaultConfig | None:
    return config.authority if isinstance(config.authority, VaultAuthorityConfig) else None


@asynccontextmanager
async def _authority(config: Config, secrets: Secrets, on_issued: OnIssued) -> AsyncIterator[Authority]:
    chosen = config.authority
    authority: Authority
    if isinstance(chosen, VaultAuthorityConfig):
        authority = await VaultAuthority.open(
            address=chosen.address,
            token=await secrets.resolve(chosen.token),
            mount=chosen.mount,
            trust_domain=config.trust_domain,
            ca_file=chosen.ca_file,
            namespace=chosen.namespace,
            clock=utc_now,
            on_issued=on_issued,
        )
    elif isinstance(chosen, DiskAuthorityConfig):
        authority = await DiskAuthority.open(
            config.state_dir / "ca",
            passphrase=await secrets.resolve(chosen.passphrase),
            trust_domain=config.trust_domain,
            create=chosen.create,
            clock=utc_now,
            on_issued=on_issued,
        )
    else:
        authority = MemoryAuthority(config.trust_domain, utc_now, on_issued=on_issued)
    try:
        yield authority
    finally:
        await authority.close()


async def _backend(config: OtlpConfig, secrets: Secrets) -> Backend:
    authorization = None
    if config.authorization is not None:
        authorization = (await secrets.resolve(config.authorization)).get_secret_value()
    transport = GrpcTransport if config.protocol == "grpc" else HttpTransport
    return Backend(
        config.name,
        transport(config.endpoint, authorization),
        frozenset(SIGNALS[signal] for signal in config.signals),
        config.max_queue_bytes,
    )


def _scraped(
    config: Config,
    metrics: Metrics,
    publisher: Publisher,
    sessions: Sessions,
    audit: CountedAuditLog,
    serving: ServingIdentity,
) -> Scraped:
    ProcessCollector(registry=metrics.registry)
    GCCollector(registry=metrics.registry)
    vitals = Vitals(
        region=config.region,
        version=version_of("meshwarden"),
        state_dir=config.state_dir,
        publisher=publisher,
        sessions=sessions,
        audit=audit,
        svid=serving.svid,
        bundles=serving.bundles,
        clock=utc_now,
    )
    return Scraped(metrics.registry, vitals, sessions.states)


def _regions(
    config: Config, durable: Durable, gather: Gather, metrics: Metrics, serving: ServingIdentity, rng: random.Random
) -> tuple[Regions, Remote]:
    """What asks the other regions, and what they have told."""
    remote = Remote((peer.region for peer in config.peer), utc_now, idle=timedelta(seconds=config.metrics_idle_s))
    remote.recall(gather.ledger.totals_told())
    metrics.registry.register(remote)
    inbox = Inbox(gather.ledger, remote)
    durable.add(inbox)
    own = Own(config.trust_domain, serving.svid, serving.bundles)
    pullers = [
        Puller(Peer(peer.region, peer.address), own, inbox, gather.ledger, gather.tally, gather.settle, utc_now, rng)
        for peer in config.peer
    ]
    regions = Regions(config.region, pullers, inbox, utc_now)
    text = "How old what is known of another region is, in seconds; +Inf where nothing is."
    metrics.gauge("meshwarden_region_age_seconds", text, ("region",), regions.ages)
    metrics.gauge("meshwarden_region_answers", "Whether another region answers.", ("region",), regions.answering)
    return regions, remote


def _operator(config: Config, authority: Authority, audit: AuditLog, rng: random.Random) -> OperatorCredential | None:
    if config.operator_directory is None:
        return None
    return OperatorCredential(
        authority, config.trust_domain, "local", config.operator_directory, audit=audit, clock=utc_now, rng=rng
    )


@contextmanager
def _listening(setting: str, address: str) -> Iterator[None]:
    """Names the setting whose address can't be listened on."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        raise CannotListen(f"{setting} = {address}: {reason}") from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock on the state directory for as long as the process lives."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunning(f"{path.parent}: another control plane runs on this state directory") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _announce(state_dir: Path, address: str, metrics_url: str, roots_pem: bytes) -> None:
    """Writes the roots and, last, `server.json`: who waits for it finds all that it names."""
    (state_dir / "ca.pem").write_bytes(roots_pem)
    said = {"address": address, "metrics_url": metrics_url, "ca_file": str(state_dir / "ca.pem"), "pid": os.getpid()}
    draft = state_dir / "server.json.draft"
    draft.write_text(json.dumps(said))
    draft.rename(state_dir / "server.json")
