"""What goes to the nodes: policy, roots, secrets and shares of limits, and who is there to take it."""

import random
import time
from dataclasses import dataclass

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.app.engines import Engines, secret_watch, writer
from meshwarden.controlplane.app.identity import Identity
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.identity.rotation import RootRotation
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.roots import Roots
from meshwarden.controlplane.publish.secrets import EntrySecrets
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.quota.division import Division
from meshwarden.controlplane.secrets.live import LiveSettings
from meshwarden.controlplane.secrets.reference import Grants
from meshwarden.sdk.tracing.own_span import Provider


@dataclass(frozen=True)
class Publishing:
    """The parts."""

    trails: Trails
    settings: LiveSettings
    secrets: EntrySecrets
    publisher: Publisher
    sessions: Sessions
    division: Division
    rotation: RootRotation


def publishing(
    config: Config, engines: Engines, identity: Identity, rng: random.Random, tracing: Provider
) -> Publishing:
    """Makes them, listening to each other; nothing runs yet."""
    store, audit, domain, owner = engines.store, engines.audit, config.trust_domain, writer(config)
    trails, roots = Trails(tracing, utc_now), Roots(tracing, utc_now)
    watch = secret_watch(config, engines.secrets, rng)
    secrets = EntrySecrets(watch, Grants(config.secrets_of), audit, domain, identity.denied.identity)
    publisher = Publisher(store, trust_domain=domain, audit=audit, trails=trails, roots=roots, secrets=secrets)
    division = Division(
        store,
        publisher.mesh,
        owner,
        time.monotonic,
        lambda: utc_now().timestamp(),
        lambda: rng.getrandbits(62) + 1,
        config.region,
    )
    sessions = Sessions(publisher, store, region=config.region, clock=utc_now, owner=owner)
    rotation = RootRotation(
        engines.authority,
        store,
        sessions.trust,
        sessions.renew,
        audit,
        utc_now,
        owner=owner,
        regions=engines.region_trust.missing,
    )
    elsewhere = engines.region_trust.missing_jwt
    identity.jwt.missing = lambda kid: rotation.missing_jwt(kid) | elsewhere(kid)
    publisher.listen(division.touch)
    mesh, want = publisher.mesh, identity.federation.want
    publisher.listen(lambda impact: want(mesh.trust_domains.values()) if impact.trust else None)
    identity.deny_watch.listen(publisher.deny)
    settings = LiveSettings(watch, engines.settings, engines.secrets.resolve)
    return Publishing(trails, settings, secrets, publisher, sessions, division, rotation)
