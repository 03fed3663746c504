"""How telemetry is kept, sampled and shared between regions, by the configuration."""

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.gather.remote import Remote
from meshwarden.controlplane.gather.tail_policy import ACROSS_GRACE_S, GRACE_S, TailPolicy
from meshwarden.controlplane.gather.trace_store import Keep
from meshwarden.controlplane.identity.deny_elsewhere import DeniesElsewhere
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.link import ANSWER_S, Link, Own, Peer, keep_asking
from meshwarden.controlplane.regions.puller import Puller
from meshwarden.controlplane.regions.regions import Regions
from meshwarden.v1.region_service_pb2 import GetDeniesRequest


def traces_of(config: Config) -> dict[str, Keep]:
    """How long the traces of tenants are kept that have times and sizes of their own."""
    return {
        tenant: Keep(
            timedelta(seconds=config.traces_keep_s if own.keep_s is None else own.keep_s),
            config.traces_max_bytes if own.max_bytes is None else own.max_bytes,
        )
        for tenant, own in config.traces_of.items()
    }


def tail(config: Config, mesh: Mesh) -> TailPolicy | None:
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


def regions(
    config: Config,
    durable: Durable,
    gather: Gather,
    metrics: Metrics,
    serving: ServingIdentity,
    rng: random.Random,
    questions: Sequence[Callable[[Link], Awaitable[None]]],
) -> tuple[Regions, Remote]:
    """What asks the other regions, and what they have told."""
    remote = Remote((peer.region for peer in config.peer), utc_now, idle=timedelta(seconds=config.metrics_idle_s))
    remote.recall(gather.ledger.totals_told())
    metrics.registry.register(remote)
    inbox = Inbox(gather.ledger, remote)
    durable.add(inbox)
    own = Own(config.trust_domain, serving.svid, serving.bundles)
    peers = [Peer(peer.region, peer.address) for peer in config.peer]
    pullers = [
        Puller(
            peer,
            own,
            inbox,
            gather.ledger,
            gather.tail,
            gather.tally,
            gather.settle,
            utc_now,
            rng,
        )
        for peer in peers
    ]
    askers = [partial(keep_asking, Link(peer, own), ask, rng) for peer in peers for ask in questions]
    regions = Regions(config.region, pullers, inbox, utc_now, askers)
    text = "How old what is known of another region is, in seconds; +Inf where nothing is."
    metrics.gauge("meshwarden_region_age_seconds", text, ("region",), regions.ages)
    metrics.gauge("meshwarden_region_answers", "Whether another region answers.", ("region",), regions.answering)
    return regions, remote


async def ask_denies(denies: DeniesElsewhere, link: Link) -> None:
    """Asks a region once what it has denied; raises what `keep_asking` expects."""
    region = link.peer.region
    answer = await (await link.stub()).GetDenies(GetDeniesRequest(etag=denies.etag(region)), timeout=ANSWER_S)
    await denies.hear(region, answer)
