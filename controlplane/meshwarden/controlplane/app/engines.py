"""Picks the engines that the configuration names: store, audit log, who signs and who judges, where telemetry goes."""

import asyncio
import platform
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import SecretStr

from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.kept import KeptFiles
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import Authority, OnIssued
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.audit.anchor import Anchor
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.config.authority import DiskAuthorityConfig, VaultAuthorityConfig
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.config.identity import X509PopAttestorConfig
from meshwarden.controlplane.config.telemetry import OtlpConfig
from meshwarden.controlplane.config.vault import VaultConfig
from meshwarden.controlplane.gather.forward.backend import Backend, GrpcTransport, HttpTransport, Withheld
from meshwarden.controlplane.gather.forward.header import BadHeader, Headers
from meshwarden.controlplane.identity.attestor import Attestor
from meshwarden.controlplane.identity.issuing import recorder
from meshwarden.controlplane.identity.jwt_seal import Passphrase
from meshwarden.controlplane.regions.authority import RegionalAuthority
from meshwarden.controlplane.regions.trust import RegionTrust
from meshwarden.controlplane.secrets.live import Setting
from meshwarden.controlplane.secrets.port import SecretAway, SecretError
from meshwarden.controlplane.secrets.reference import SCHEME
from meshwarden.controlplane.secrets.resolver import Secrets
from meshwarden.controlplane.secrets.watch import SecretWatch
from meshwarden.controlplane.store.port import Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.sdk.tracing.own_span import Provider

if TYPE_CHECKING:
    from meshwarden.controlplane.identity.vault_token import VaultTokens

AUDIT = "audit.jsonl"
KEPT = "kept"
# What the configuration calls signals, and we call things.
SIGNALS = {"traces": "span", "metrics": "point", "logs": "log"}


@dataclass(frozen=True)
class Engines:
    """What the configuration has picked."""

    store: Store
    audit: CountedAuditLog
    anchor: Anchor
    authority: Authority
    backends: tuple[Backend, ...]
    secrets: Secrets
    # What is kept for a start without whoever signs; None where they are here.
    kept: KeptFiles | None
    # Reads what the keys of JWT-SVIDs are encrypted under in the store; None keeps them in memory.
    jwt_passphrase: Passphrase | None
    # What of the configuration may change in Vault.
    settings: tuple[Setting, ...]
    # Looks up the tokens that operators log in with; None if none does.
    logins: "VaultTokens | None"
    # {a proof of AttestRequest: what judges it}, beside join tokens.
    attestors: Mapping[str, Attestor]
    region_trust: RegionTrust


async def open_engines(config: Config, tracing: Provider, closing: AsyncExitStack) -> Engines:
    """Opens what is picked, in the order store, audit log, who signs; `closing` closes it.

    Raises:
        StoreError: the store can't be opened.
        AuditError: the audit log can't.
        AuthorityError: nobody can sign.
        SecretError: a secret can't be had.
    """
    store = await closing.enter_async_context(open_store(config.store_file or config.state_dir / "store.sqlite"))
    events = await closing.enter_async_context(FileAuditLog.open(config.state_dir / AUDIT, utc_now))
    audit = CountedAuditLog(events)
    anchor = Anchor(store, audit, lambda: events.end, config.state_dir / AUDIT, writer(config), utc_now)
    secrets = Secrets(vault=config.vault or _vault_of(config))
    kept = await _kept(config, secrets)
    own = await closing.enter_async_context(_authority(config, secrets, recorder(audit, tracing), kept))
    region_trust = await RegionTrust.open(store, [peer.region for peer in config.peer], utc_now)
    authority = RegionalAuthority(own, region_trust) if config.peer else own
    found = [await _backend(backend, secrets) for backend in config.otlp]
    backends = tuple(backend for backend, _ in found)
    attestors = await _attestors(config, secrets, closing)
    settings = (*(setting for _, setting in found), *await _fixed(config, secrets))
    logins = _logins(config, secrets, closing)
    return Engines(
        store,
        audit,
        anchor,
        authority,
        backends,
        secrets,
        kept,
        _jwt_passphrase(config, secrets),
        settings,
        logins,
        attestors,
        region_trust,
    )


def writer(config: Config) -> str:
    """Names this control plane among those of one store, the same after a restart."""
    return f"{platform.node()}:{config.state_dir}"


def _jwt_passphrase(config: Config, secrets: Secrets) -> Passphrase | None:
    chosen = config.authority
    own = chosen.passphrase if isinstance(chosen, DiskAuthorityConfig) else None
    reference = config.jwt_passphrase or own

    async def read() -> SecretStr:
        assert reference is not None  # noqa: S101 - or it isn't called
        return await secrets.resolve(reference)

    return read if reference is not None else None


async def _kept(config: Config, secrets: Secrets) -> KeptFiles | None:
    chosen = config.authority
    if not isinstance(chosen, VaultAuthorityConfig):
        return None
    passphrase = await secrets.resolve(chosen.passphrase) if chosen.passphrase is not None else None
    return await asyncio.to_thread(KeptFiles, config.state_dir / KEPT, config.trust_domain, passphrase)


def _vault_of(config: Config) -> VaultConfig | None:
    return config.authority if isinstance(config.authority, VaultAuthorityConfig) else None


@asynccontextmanager
async def _authority(
    config: Config, secrets: Secrets, on_issued: OnIssued, kept: KeptFiles | None
) -> AsyncIterator[Authority]:
    chosen = config.authority
    authority: Authority
    if isinstance(chosen, VaultAuthorityConfig):
        authority = await _vault_authority(config.trust_domain, chosen, secrets, on_issued, kept)
    elif isinstance(chosen, DiskAuthorityConfig):
        authority = await DiskAuthority.open(
            chosen.directory or config.state_dir / "ca",
            passphrase=await secrets.resolve(chosen.passphrase),
            trust_domain=config.trust_domain,
            create=chosen.create,
            root_ttl=timedelta(days=chosen.root_ttl_days),
            clock=utc_now,
            on_issued=on_issued,
        )
    else:
        authority = MemoryAuthority(config.trust_domain, utc_now, on_issued=on_issued)
    try:
        yield authority
    finally:
        await authority.close()


async def _vault_authority(
    trust_domain: str, chosen: VaultAuthorityConfig, secrets: Secrets, on_issued: OnIssued, kept: KeptFiles | None
) -> Authority:
    # Most control planes start without Vault, and the sooner.
    from meshwarden.certs.authority.vault import VaultAuthority
    from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
    from meshwarden.certs.authority.vault_memory import VaultMemory
    from meshwarden.controlplane.secrets.vault_login import client_of

    memory = VaultMemory(kept, chosen.mount) if kept is not None else None
    client = client_of(chosen, secrets.resolve)
    if chosen.form == "direct":
        return await DirectVaultAuthority.open(
            client,
            mount=chosen.mount,
            role=chosen.role,
            trust_domain=trust_domain,
            clock=utc_now,
            on_issued=on_issued,
            memory=memory,
        )
    return await VaultAuthority.open(
        client, mount=chosen.mount, trust_domain=trust_domain, clock=utc_now, on_issued=on_issued, memory=memory
    )


def _logins(config: Config, secrets: Secrets, closing: AsyncExitStack) -> "VaultTokens | None":
    """What looks up operators' tokens, until `closing` ends."""
    settings = config.vault or _vault_of(config)
    if config.operator_login is None or settings is None:
        return None
    from meshwarden.controlplane.identity.vault_token import VaultTokens
    from meshwarden.controlplane.secrets.vault_login import client_of

    client = client_of(settings, secrets.resolve)
    closing.callback(client.close)
    return VaultTokens(client, "operators")


async def _attestors(config: Config, secrets: Secrets, closing: AsyncExitStack) -> dict[str, Attestor]:
    """What judges proofs, beside join tokens, until `closing` ends."""
    found: dict[str, Attestor] = {}
    for chosen in config.attestor:
        if isinstance(chosen, X509PopAttestorConfig):
            from meshwarden.controlplane.identity.attestor_x509pop import PossessionAttestor

            found["x509pop"] = PossessionAttestor(chosen.roots(), chosen.template(), chosen.tenants)
        else:
            from meshwarden.controlplane.identity.attestor_vault import VaultAttestor
            from meshwarden.controlplane.secrets.vault_login import client_of

            settings = config.vault or _vault_of(config)
            assert settings is not None  # noqa: S101 - the configuration says so
            # Of its own: nodes' tokens must not wait for what is signed, nor that for them.
            client = client_of(settings, secrets.resolve)
            closing.callback(client.close)
            found["vault"] = VaultAttestor(
                client, chosen.template(), mount=chosen.mount, policy=chosen.policy, tenants=chosen.tenants
            )
    return found


async def _backend(config: OtlpConfig, secrets: Secrets) -> tuple[Backend, Setting]:
    references = {**config.headers, **({"authorization": config.authorization} if config.authorization else {})}
    values, away = await _present(references, secrets)

    def headers(values: Mapping[str, SecretStr]) -> Headers:
        return Headers({name: value.get_secret_value() for name, value in values.items()}, config.tenant_header)

    what = f"[[otlp]] {config.name}"
    try:
        first = Withheld(f"waits for its secret: {away}") if away else headers(values)
    except BadHeader as error:
        raise SecretError(f"{what}: {error}") from None
    transport = (GrpcTransport if config.protocol == "grpc" else HttpTransport)(config.endpoint, first)
    signals = frozenset(SIGNALS[signal] for signal in config.signals)
    backend = Backend(config.name, transport, signals, config.max_queue_bytes)
    return backend, Setting(what, references, values, lambda values: transport.use(headers(values)), away)


async def _present(references: Mapping[str, str], secrets: Secrets) -> tuple[dict[str, SecretStr], str]:
    """Returns {name: value} of what can be read now, and why the rest, for which Vault is needed, can't be."""
    values, away = {}, ""
    for name, said in references.items():
        try:
            values[name] = await secrets.resolve(said)
        except SecretAway as error:
            away = str(error)
    return values, away


async def _fixed(config: Config, secrets: Secrets) -> list[Setting]:
    """What opens keys is read at start, and never again."""
    said = {"jwt_passphrase": config.jwt_passphrase}
    if isinstance(config.authority, DiskAuthorityConfig):
        said["[authority] passphrase"] = config.authority.passphrase
    found = {what: reference for what, reference in said.items() if reference and reference.startswith(SCHEME)}
    settings = []
    for what, place in found.items():
        values, away = await _present({"": place}, secrets)
        settings.append(Setting(what, {"": place}, values, None, away))
    return settings


def secret_watch(config: Config, secrets: Secrets, rng: random.Random) -> SecretWatch:
    """What keeps secrets as new as Vault has them."""
    engine = secrets.vault if secrets.has_vault else None
    return SecretWatch(engine, rng, time.monotonic, poll_s=config.secrets_poll_s)
