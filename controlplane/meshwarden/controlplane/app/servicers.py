"""What answers at the door: one servicer a service, of the parts of a control plane."""

from collections.abc import Callable
from importlib.metadata import version as version_of

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.api.admin import AdminServicer
from meshwarden.controlplane.api.audit import AuditServicer
from meshwarden.controlplane.api.bundles import BundleDesk
from meshwarden.controlplane.api.console import ConsoleServicer
from meshwarden.controlplane.api.cost import CostServicer
from meshwarden.controlplane.api.data_plane import DataPlaneServicer
from meshwarden.controlplane.api.health import Health
from meshwarden.controlplane.api.history import RevisionServicer
from meshwarden.controlplane.api.live.feed import Feed
from meshwarden.controlplane.api.live.look import Looker
from meshwarden.controlplane.api.node import NodeServicer
from meshwarden.controlplane.api.operator import OperatorServicer
from meshwarden.controlplane.api.preview import PreviewServicer
from meshwarden.controlplane.api.quota import QuotaServicer
from meshwarden.controlplane.api.region import RegionServicer
from meshwarden.controlplane.api.report import ReportServicer
from meshwarden.controlplane.api.resource import ResourceServicer
from meshwarden.controlplane.api.rollout import RolloutServicer
from meshwarden.controlplane.api.server import Servicers
from meshwarden.controlplane.api.session import Place, SessionServicer
from meshwarden.controlplane.app.engines import AUDIT, Engines
from meshwarden.controlplane.app.gathering import Gathering
from meshwarden.controlplane.app.identity import Identity
from meshwarden.controlplane.app.publishing import Publishing
from meshwarden.controlplane.app.rollout import Rollouts
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.identity.attestor_token import TokenAttestor
from meshwarden.controlplane.identity.issued import Issued
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.roster import Roster
from meshwarden.controlplane.publish.roots import Revoked
from meshwarden.controlplane.publish.trust import Trust
from meshwarden.v1.console_service_pb2 import WatchMeshResponse


def servicers(
    config: Config,
    engines: Engines,
    identity: Identity,
    publishing: Publishing,
    gathering: Gathering,
    rollouts: Rollouts,
    place: Callable[[], Place | None],
) -> Servicers:
    """Makes them, and has those told of changed roots that have to be; `place` says where browsers find us."""
    domain, rotation = config.trust_domain, publishing.rotation
    tokens = JoinTokens(engines.store, utc_now)
    nodes = NodeIdentity(
        engines.authority,
        engines.store,
        {"join_token": TokenAttestor(tokens), **engines.attestors},
        engines.audit,
        utc_now,
        trust_domain=domain,
        region=config.region,
        denied=identity.denied.identity,
        jwt=identity.jwt,
        limits=config.limits.paces(),
        known=publishing.sessions.known,
        reserved=config.rest.web_names() if config.rest is not None else (),
    )
    node = NodeServicer(
        nodes,
        publishing.publisher,
        publishing.sessions,
        engines.authority,
        trust=Trust(identity.jwt, identity.federation),
    )
    rotation.listen(node.tell_bundle)
    rotation.listen(Revoked(rotation.known, publishing.publisher.cut, utc_now).follow)
    desk, mesh = rollouts.desk, publishing.publisher.mesh
    resource = ResourceServicer(engines.store, desk)
    return Servicers(
        admin=_admin(config, engines, identity, publishing, gathering, tokens),
        audit=AuditServicer(config.state_dir / AUDIT, engines.anchor),
        console=_console(config, publishing, gathering),
        cost=CostServicer(gathering.costs, gathering.durable, config.region, utc_now),
        data_plane=DataPlaneServicer(publishing.publisher, publishing.sessions),
        node=node,
        operator=OperatorServicer(
            identity.operators, engines.authority, engines.store, domain, utc_now, identity.login
        ),
        preview=PreviewServicer(resource, publishing.publisher, publishing.sessions, gathering.seen, utc_now),
        quota=QuotaServicer(nodes, publishing.division, publishing.publisher),
        region=RegionServicer(
            gathering.gather.ledger,
            gathering.gather.tail,
            engines.authority,
            rotation,
            identity.deny_watch,
            identity.jwt,
            (domain, config.region),
        ),
        report=ReportServicer(gathering.gather, nodes),
        resource=resource,
        revision=RevisionServicer(engines.store, desk, publishing.publisher, publishing.sessions),
        rollout=RolloutServicer(mesh, rollouts.driver, desk, publishing.sessions, utc_now),
        session=SessionServicer(identity.sessions, identity.operators, domain, config.region, place),
    )


def _console(config: Config, publishing: Publishing, gathering: Gathering) -> ConsoleServicer:
    """Makes what tells of the mesh as it changes."""
    looker = Looker(
        lambda: (gathering.gather.graph, *gathering.remote.graphs().values()),
        publishing.publisher,
        publishing.sessions,
        utc_now,
    )
    return ConsoleServicer(Feed(looker.look, WatchMeshResponse(trust_domain=config.trust_domain, region=config.region)))


def _admin(
    config: Config,
    engines: Engines,
    identity: Identity,
    publishing: Publishing,
    gathering: Gathering,
    tokens: JoinTokens,
) -> AdminServicer:
    """Makes what answers operators, of all that they may ask for."""
    domain, rotation = config.trust_domain, publishing.rotation
    return AdminServicer(
        trust_domain=domain,
        region=config.region,
        version=version_of("meshwarden"),
        authority=engines.authority,
        store=engines.store,
        tokens=tokens,
        publisher=publishing.publisher,
        sessions=publishing.sessions,
        gather=gathering.gather,
        remote=gathering.remote,
        regions=gathering.regions,
        division=publishing.division,
        audit=engines.audit,
        denies=identity.denies,
        deny_watch=identity.deny_watch,
        rotation=rotation,
        jwt=identity.jwt,
        bundles=BundleDesk(identity.document, identity.federation, domain),
        roster=Roster(engines.store, identity.denies, Issued(engines.store, utc_now), engines.audit, utc_now),
        health=Health(
            state_dir=config.state_dir,
            authority=engines.authority,
            audit=engines.audit,
            gather=gathering.gather,
            secrets=publishing.secrets.watch.faults,
            settings=lambda: [*publishing.settings.faults(), *filter(None, [identity.jwt.fault])],
            svid=identity.serving.svid,
            roots=lambda: rotation.known,
        ),
        clock=utc_now,
    )
