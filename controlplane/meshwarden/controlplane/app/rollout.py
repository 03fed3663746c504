"""What changes resources, and drives rollouts of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.change import ChangeDesk
from meshwarden.controlplane.app.engines import Engines, writer
from meshwarden.controlplane.app.gathering import Gathering
from meshwarden.controlplane.app.publishing import Publishing
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Impact
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.rollout.count import Counts
from meshwarden.controlplane.rollout.driver import Driver
from meshwarden.sdk.tracing.own_span import Provider

NODES_S: Final = 1.0


@dataclass(frozen=True)
class Rollouts:
    """The parts."""

    desk: ChangeDesk
    counts: Counts
    driver: Driver


class _Nodes:
    """The nodes that have joined, and where each says that it is; looked up once a second at most, as they are many."""

    def __init__(self, sessions: Sessions, region: str) -> None:
        self._sessions, self._region = sessions, region
        self._known: Mapping[str, Place] = {}
        self._until_s = 0.0

    def __call__(self) -> Mapping[str, Place]:
        now_s = time.monotonic()
        if now_s >= self._until_s:
            self._known = {one.node: Place(self._region, one.zone) for one in self._sessions.everywhere()}
            self._until_s = now_s + NODES_S
        return self._known


def rollouts(
    config: Config, engines: Engines, publishing: Publishing, gathering: Gathering, tracing: Provider
) -> Rollouts:
    """Makes them, listening to what changes and what is reported; nothing runs yet."""
    store, mesh, owner = engines.store, publishing.publisher.mesh, writer(config)
    grants = publishing.secrets.grants
    desk = ChangeDesk(store, utc_now, config.region, engines.audit, publishing.trails, config.trust_domain, grants)

    nodes = _Nodes(publishing.sessions, config.region)
    counts = Counts(store, mesh, nodes, owner)
    who = SpiffeId.control_plane(config.trust_domain, config.region)
    driver = Driver(store, mesh, counts, nodes, desk, who, owner, utc_now, tracing)

    def touch(_: Impact) -> None:
        counts.touch()
        driver.touch()

    publishing.publisher.listen(touch)
    gathering.gather.heard.append(counts.take)
    return Rollouts(desk, counts, driver)
