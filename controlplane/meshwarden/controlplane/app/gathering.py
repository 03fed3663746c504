"""How telemetry is kept and sampled, and what regions tell each other, by the configuration."""

import random
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.app.engines import Engines
from meshwarden.controlplane.app.identity import Identity
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.graph.remote import Remote
from meshwarden.controlplane.gather.graph.seen import SeenCalls
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.tail.policy import ACROSS_GRACE_S, GRACE_S, TailPolicy
from meshwarden.controlplane.gather.trace.store import Keep
from meshwarden.controlplane.identity.deny_elsewhere import DeniesElsewhere
from meshwarden.controlplane.insight.cost import Costs
from meshwarden.controlplane.insight.price import ListPrices
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.link import ANSWER_S, Link, Own, Peer, keep_asking
from meshwarden.controlplane.regions.puller import Puller
from meshwarden.controlplane.regions.regions import Regions
from meshwarden.v1.region_service_pb2 import GetDeniesRequest


@dataclass(frozen=True)
class Gathering:
    """The parts."""

    metrics: Metrics
    durable: Durable
    costs: Costs
    gather: Gather
    regions: Regions
    remote: Remote
    seen: SeenCalls


def gathering(config: Config, engines: Engines, mesh: Mesh, identity: Identity, rng: random.Random) -> Gathering:
    """Makes what takes telemetry, and what asks other regions; nothing runs yet."""
    metrics, durable = (
        Metrics(idle=timedelta(seconds=config.metrics_idle_s)),
        Durable(config.state_dir / "gather.sqlite"),
    )
    costs = Costs(ListPrices(), utc_now)
    durable.add(costs)
    metrics.registry.register(costs)
    gather = Gather(
        durable,
        Ledger(durable, config.trust_domain, utc_now, region=config.region),
        metrics,
        engines.backends,
        utc_now,
        rng,
        owns=mesh.owns,
        trust_domain=config.trust_domain,
        region=config.region,
        traces_retention=timedelta(seconds=config.traces_keep_s),
        traces_max_bytes=config.traces_max_bytes,
        traces_of=_traces_of(config),
        tail=_tail(config, mesh),
        meter=costs,
    )
    remote = Remote((peer.region for peer in config.peer), utc_now, idle=timedelta(seconds=config.metrics_idle_s))
    remote.recall(gather.ledger.totals_told())
    metrics.registry.register(remote)
    inbox = Inbox(gather.ledger, remote)
    durable.add(inbox)
    regions = _regions(config, engines, identity, gather, metrics, inbox, rng)
    return Gathering(metrics, durable, costs, gather, regions, remote, SeenCalls(durable))


def _regions(
    config: Config,
    engines: Engines,
    identity: Identity,
    gather: Gather,
    metrics: Metrics,
    inbox: Inbox,
    rng: random.Random,
) -> Regions:
    """What asks the other regions: for what they have counted, for what they issue by, and for what they deny."""
    own = Own(config.trust_domain, identity.serving.svid, identity.serving.bundles)
    peers = [Peer(peer.region, peer.address) for peer in config.peer]
    pullers = [
        Puller(peer, own, inbox, gather.ledger, gather.tail, gather.tally, gather.settle, utc_now, rng)
        for peer in peers
    ]
    elsewhere = DeniesElsewhere(identity.denies, identity.deny_watch, utc_now)
    questions = (engines.region_trust.ask, partial(_ask_denies, elsewhere))
    askers = [partial(keep_asking, Link(peer, own), ask, rng) for peer in peers for ask in questions]
    regions = Regions(config.region, pullers, inbox, utc_now, askers)
    text = "How old what is known of another region is, in seconds; +Inf where nothing is."
    metrics.gauge("meshwarden_region_age_seconds", text, ("region",), regions.ages)
    metrics.gauge("meshwarden_region_answers", "Whether another region answers.", ("region",), regions.answering)
    return regions


def _traces_of(config: Config) -> dict[str, Keep]:
    """How long the traces of tenants are kept that have times and sizes of their own."""
    return {
        tenant: Keep(
            timedelta(seconds=config.traces_keep_s if own.keep_s is None else own.keep_s),
            config.traces_max_bytes if own.max_bytes is None else own.max_bytes,
        )
        for tenant, own in config.traces_of.items()
    }


def _tail(config: Config, mesh: Mesh) -> TailPolicy | None:
    """Which traces go on to backends once they are whole; None for all."""
    if config.tail_sampling is None:
        return None

    def slow_after(tenant: str, service: str) -> float | None:
        slos = mesh.of_service("SLO", Name(tenant, service)).values()
        found = [slo.spec.latency.threshold for slo in slos if slo.spec.HasField("latency")]
        return min((threshold.ToNanoseconds() / 1e9 for threshold in found), default=None)

    said = dict(config.tail_sampling)
    if said["grace_s"] is None:
        said["grace_s"] = ACROSS_GRACE_S if config.peer else GRACE_S
    return TailPolicy(**said, slow_after=slow_after)


async def _ask_denies(denies: DeniesElsewhere, link: Link) -> None:
    """Asks a region once what it has denied; raises what `keep_asking` expects."""
    region = link.peer.region
    answer = await (await link.stub()).GetDenies(GetDeniesRequest(etag=denies.etag(region)), timeout=ANSWER_S)
    await denies.hear(region, answer)
