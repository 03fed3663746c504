"""Who is who: what issues and proves it, who operates, and who is denied."""

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Denied
from meshwarden.controlplane.api.spiffe_endpoint import SpiffeEndpoint
from meshwarden.controlplane.app.engines import Engines
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.identity.browser_session import BrowserSessions
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.identity.deny import Denies
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.federation import Federation
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.operators import LOCAL, OperatorRole, Operators
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.identity.web_serving import WebServing
from meshwarden.sdk.tracing.own_span import Provider

if TYPE_CHECKING:
    from meshwarden.controlplane.identity.operator_login import OperatorLogin


@dataclass(frozen=True)
class Identity:
    """The parts; those that the configuration leaves out are None."""

    serving: ServingIdentity
    web: WebServing | None
    sessions: BrowserSessions
    operator: OperatorCredential | None
    jwt: JwtAuthority
    federation: Federation
    document: BundleDocument
    endpoint: SpiffeEndpoint | None
    denied: Denied
    denies: Denies
    deny_watch: DenyWatch
    operators: Operators
    login: "OperatorLogin | None"


def identity(config: Config, engines: Engines, rng: random.Random, tracing: Provider) -> Identity:
    """Makes them; nothing runs yet."""
    store, audit, authority, domain = engines.store, engines.audit, engines.authority, config.trust_domain
    serving = ServingIdentity(
        authority, domain, config.region, audit=audit, clock=utc_now, rng=rng, provider=tracing, kept=engines.kept
    )
    endpoint = config.spiffe_endpoint
    jwt = JwtAuthority(
        store,
        audit,
        utc_now,
        trust_domain=domain,
        issuer=endpoint.issuer if endpoint is not None else "",
        passphrase=engines.jwt_passphrase,
    )
    web_roots = str(config.federation_ca_file) if config.federation_ca_file is not None else None
    document = BundleDocument(store, authority, jwt, domain)
    denied = Denied(utc_now)
    operators = Operators(authority, store, audit, utc_now, trust_domain=domain, denied=denied.identity)
    return Identity(
        serving=serving,
        web=_web(config, engines, serving),
        sessions=BrowserSessions(audit, utc_now),
        operator=_operator(config, engines, rng, tracing),
        jwt=jwt,
        federation=Federation(
            store, audit, utc_now, rng, own=serving.bundles, trust_domain=domain, web_roots=web_roots
        ),
        document=document,
        endpoint=_endpoint(config, document, serving),
        denied=denied,
        denies=Denies(store, audit, utc_now),
        deny_watch=DenyWatch(store, utc_now),
        operators=operators,
        login=_login(config, engines, operators),
    )


def _endpoint(config: Config, document: BundleDocument, serving: ServingIdentity) -> SpiffeEndpoint | None:
    """What shows others what proves our identities, if something shall."""
    chosen = config.spiffe_endpoint
    if chosen is None:
        return None
    files = (chosen.certificate, chosen.key) if chosen.certificate is not None and chosen.key is not None else None
    return SpiffeEndpoint(document, serving.svid, issuer=chosen.issuer, files=files)


def _web(config: Config, engines: Engines, serving: ServingIdentity) -> WebServing | None:
    """What the REST listener shows, if there is one."""
    chosen = config.rest
    if chosen is None:
        return None
    return WebServing(
        serving,
        engines.authority,
        config.trust_domain,
        config.region,
        audit=engines.audit,
        clock=utc_now,
        names=chosen.web_names(),
        files=chosen.files,
    )


def _login(config: Config, engines: Engines, operators: Operators) -> "OperatorLogin | None":
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
