"""Other trust domains: their bundles, fetched as `TrustDomain` resources say, and kept in the store.

/identity/foreign/<trust domain>   by which resource it was taken (a digest of that), and the last document, as it came

What was taken stands until a newer one is: an endpoint that is away, or serves what can't be used, changes nothing. A
trust domain whose resource goes is trusted no more at once; of one whose resource changes, what was fetched by the old
one counts no more. Bundles are never merged: each proves its own identities.
"""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import anyio
import structlog

from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.certs.bundle_document import TrustBundle, parse_document
from meshwarden.certs.clock import Clock
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.fetch import FetchFailed, fetch
from meshwarden.controlplane.store.port import ANY, Put, Store, StoreError
from meshwarden.v1.resources_pb2 import TrustDomain

PREFIX: Final = "/identity/foreign/"
DEFAULT_REFRESH: Final = timedelta(minutes=5)
MIN_REFRESH: Final = timedelta(seconds=10)
RETRY: Final = timedelta(seconds=30)
MAX_DOMAINS: Final = 256

log = structlog.get_logger()


@dataclass
class _Domain:
    """What is known of one trust domain."""

    spec: TrustDomain
    bundle: TrustBundle | None = None
    document: bytes = b""
    # When it is asked next, and what the last time came to; empty if it was well.
    due: datetime | None = None
    fault: str = ""
    # When its endpoint last gave a good one, and since when the next is missed; the latter while it gives none.
    fetched: datetime | None = None
    missed: datetime | None = None


@dataclass(frozen=True)
class State:
    """How it stands with another trust domain.

    Attributes:
        trust_domain: its name.
        bundle: what proves its identities; None while nothing of it is known.
        document: that as it came.
        fetched: when its endpoint last gave a good one; None if it hasn't since we began.
        overdue: how long ago the next should have been fetched.
        fault: what is wrong with its endpoint; empty if nothing is.
    """

    trust_domain: str
    bundle: TrustBundle | None
    document: bytes
    fetched: datetime | None
    overdue: timedelta
    fault: str


class Federation:
    """Keeps the bundles of other trust domains."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        clock: Clock,
        rng: random.Random,
        *,
        own: Callable[[], Mapping[str, Bundle]],
        trust_domain: str,
        web_roots: str | None = None,
    ) -> None:
        """Knows none yet.

        Args:
            store: where they are kept.
            audit: told of each change.
            clock: the present, aware.
            rng: spreads fetches.
            own: our own bundle, by our trust domain.
            trust_domain: ours, which no other bundle speaks for.
            web_roots: a file of the authorities of https_web, in place of the system's.
        """
        self._store, self._audit, self._clock, self._rng = store, audit, clock, rng
        self._own, self._trust_domain, self._web_roots = own, trust_domain, web_roots
        self._domains: dict[str, _Domain] = {}
        self._wanted: Mapping[str, TrustDomain] = {}
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def bundles(self) -> list[TrustBundle]:
        """Returns those that are known, in the order of their trust domains."""
        return [domain.bundle for _, domain in sorted(self._domains.items()) if domain.bundle is not None]

    def faults(self) -> dict[str, str]:
        """Returns what is wrong with the endpoint of a trust domain, by its name; of those with which something is."""
        return {name: domain.fault for name, domain in sorted(self._domains.items()) if domain.fault}

    def states(self) -> list[State]:
        """Returns how it stands with each, in the order of their names."""
        now, found = self._clock(), sorted(self._domains.items())
        return [
            State(name, one.bundle, one.document, one.fetched, now - (one.missed or now), one.fault)
            for name, one in found
        ]

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change of the bundles."""
        self._listeners.append(callback)

    def want(self, resources: Iterable[TrustDomain]) -> None:
        """Takes which trust domains there are: the whole set."""
        found = {one.spec.trust_domain: one for one in resources if one.spec.trust_domain != self._trust_domain}
        self._wanted = dict(sorted(found.items())[:MAX_DOMAINS])
        gone = [name for name in self._domains if name not in self._wanted]
        for name in gone:
            del self._domains[name]
            self._audit.note("federation.drop", trust_domain=name)
        if gone:
            self._tell()
        self._changed.set()

    async def run(self) -> None:
        """Fetches what is due until it is cancelled."""
        while True:
            self._changed.clear()
            await self._adopt()
            due = [name for name, domain in self._domains.items() if domain.due is None or domain.due <= self._clock()]
            async with anyio.create_task_group() as group:
                for name in due:
                    group.start_soon(self._refresh, name)
            pauses = [domain.due - self._clock() for domain in self._domains.values() if domain.due is not None]
            # A suspended machine's clock jumps: it is looked at this often.
            pause = min([RETRY, *pauses])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause.total_seconds(), 0.0)):
                    await self._changed.wait()

    async def _adopt(self) -> None:
        """Begins with what is new, from the store if it is there, else from its resource."""
        for name, resource in list(self._wanted.items()):
            domain = self._domains.get(name)
            if domain is not None and domain.spec.spec == resource.spec:
                continue
            known = self._domains[name] = _Domain(resource)
            for document in (await self._stored(name, resource), resource.spec.bundle.encode()):
                if document and known.bundle is None:
                    self._take(name, known, document)
            if known.bundle is not None or domain is not None:
                self._tell()

    async def _stored(self, name: str, resource: TrustDomain) -> bytes:
        try:
            record, _ = await self._store.get(PREFIX + name)
        except StoreError as error:
            log.warning("federation.unread", trust_domain=name, reason=str(error))
            return b""
        digest, _, document = record.value.partition(b"\n") if record is not None else (b"", b"", b"")
        return document if digest == _digest(resource) else b""

    async def _refresh(self, name: str) -> None:
        domain = self._domains.get(name)
        if domain is None:
            return
        now = self._clock()
        bundles = dict(self._own())
        bundles |= {one.trust_domain: one.x509 for one in self.bundles() if one.x509 is not None}
        try:
            document = await fetch(domain.spec.spec.bundle_endpoint, bundles, now, self._web_roots)
            bundle = parse_document(name, document)
            before = domain.bundle
            if before is not None and (bundle.sequence or 0) < (before.sequence or 0):
                raise InvalidBundle(f"bundle of {name}: its sequence number went back; an old one isn't taken")
        except (FetchFailed, InvalidBundle) as error:
            if domain.fault != str(error):
                log.warning("federation.failed", trust_domain=name, reason=str(error))
            domain.fault, domain.due = str(error), now + RETRY * self._rng.uniform(0.5, 1.0)
            domain.missed = domain.missed or now
            return
        domain.fault, domain.fetched, domain.missed = "", now, None
        refresh = max(bundle.refresh or DEFAULT_REFRESH, MIN_REFRESH)
        domain.due = now + refresh * self._rng.uniform(0.9, 1.0)
        if self._domains.get(name) is not domain or document == domain.document:
            return
        await self._keep(name, domain, bundle, document)

    async def _keep(self, name: str, domain: _Domain, bundle: TrustBundle, document: bytes) -> None:
        domain.bundle, domain.document = bundle, document
        roots = len(bundle.x509.roots) if bundle.x509 is not None else 0
        fields = {"sequence": bundle.sequence, "roots": roots, "jwt_keys": sorted(bundle.jwt.keys)}
        self._audit.note("federation.take", trust_domain=name, **fields)
        self._tell()
        try:
            await self._store.commit([Put(PREFIX + name, _digest(domain.spec) + b"\n" + document, ANY)])
        except StoreError as error:
            log.warning("federation.unkept", trust_domain=name, reason=str(error))

    def _take(self, name: str, domain: _Domain, document: bytes) -> None:
        try:
            domain.bundle, domain.document = parse_document(name, document), document
        except InvalidBundle as error:
            log.error("federation.unreadable", trust_domain=name, reason=str(error))

    def _tell(self) -> None:
        for callback in self._listeners:
            callback()


def _digest(resource: TrustDomain) -> bytes:
    return hashlib.sha256(resource.spec.SerializeToString(deterministic=True)).hexdigest().encode()
