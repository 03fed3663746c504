"""The workloads' certificates: made here, signed by the control plane, renewed at half-life, given to whom they belong.

One SVID per entry: the instances of an entry on this node share it, as they share the identity, so that a busy node
asks for few. Its key is made here with each renewal, lies in the cache (0600) and in the directories of the entry's own
workloads, and goes nowhere else; nothing here logs one.

Nothing is served past its end: `svid` returns None then, and the files are taken away.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import anyio
import grpc
import structlog
from cryptography import x509

from meshwarden.agents.backoff import asked_for
from meshwarden.agents.cache import Cache
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.workload import credential_files
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.certs.csr import make_csr
from meshwarden.certs.deny import DenyList
from meshwarden.certs.error import UNREADABLE, CertsError
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import InvalidSvid, X509Svid, new_key
from meshwarden.certs.verify import PeerRefused, verify_chain
from meshwarden.v1 import node_service_pb2 as node_pb

_log = structlog.get_logger()
_MAX_BATCH: Final = 500
_FIRST_RETRY: Final = timedelta(seconds=1)
_LAST_RETRY: Final = timedelta(seconds=60)
_LOOK: Final = timedelta(seconds=30)  # a suspended machine's clock jumps: look at it this often
_SVID: Final = "svid-"
_BUNDLE: Final = "bundle"


class CredentialMissing(Exception):
    """There is no certificate for a workload, and none could be had; the message says why."""


Sign = Callable[[list[node_pb.WorkloadCsr]], Awaitable[Sequence[node_pb.SignedWorkload]]]
"""Has certificates signed, one answer a request; `Upstream.sign`."""


@dataclass
class _Held:
    """What is known of one entry's certificate."""

    svid: X509Svid | None = None
    due: datetime | None = None
    retry: timedelta = _FIRST_RETRY
    error: str = ""


class Credentials:
    """Certificates by entry, and what to trust."""

    def __init__(
        self,
        registry: Registry,
        cache: Cache,
        bundle: Bundle,
        sign: Sign,
        clock: Callable[[], datetime],
        rng: random.Random,
        trust: Trust,
    ) -> None:
        """Starts from what the cache holds; `bundle` stands until the cache or a push says better."""
        self._registry, self._cache, self._sign = registry, cache, sign
        self._clock, self._rng = clock, rng
        self._bundle = self._cached_bundle(bundle)
        self._held: dict[str, _Held] = {}
        self._listeners: list[Callable[[], None]] = []
        self._watchers: list[Callable[[], None]] = []
        self._to_renew, self._to_publish = asyncio.Event(), asyncio.Event()
        self._settled = asyncio.Event()
        self._published: dict[str, tuple[Workload, X509Svid, Bundle, Mapping[str, Bundle]]] = {}
        self._unpublished: dict[str, str] = {}
        registry.listen(self._wake)
        self.foreign: Final = trust.foreign
        """What to trust of other trust domains; the same object until it changes."""
        trust.listen(self._changed)

    def svid(self, workload_id: str) -> X509Svid | None:
        """A workload's certificate; None if there is none that is good now."""
        workload = self._registry.workloads.get(workload_id)
        return None if workload is None else self._good(workload.entry_name)

    def bundle(self) -> Bundle:
        """What to trust; the same object until it changes."""
        return self._bundle

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change of a certificate or of a bundle."""
        self._listeners.append(callback)

    def watch(self, callback: Callable[[], None]) -> None:
        """Calls back after each round of renewing or of publishing."""
        self._watchers.append(callback)

    def is_delivered(self, workload: Workload) -> bool:
        """Whether its certificate and what to trust lie in a workload's directory, or are held back from it."""
        if workload.is_ingress or not self._registry.is_admitted(workload.id):
            return True
        known = self._published.get(workload.id)
        return known is not None and _are_same(known, (workload, self.svid(workload.id), self._bundle, self.foreign()))

    def errors(self) -> Mapping[str, str]:
        """What failed at the last try, and why: `{tenant/entry: reason}`, and `{workload id: reason}` for its files."""
        return {name: held.error for name, held in self._held.items() if held.error} | self._unpublished

    def set_bundle(self, bundle: Bundle) -> None:
        """Takes what to trust from now on.

        Raises:
            InvalidBundle: it is another trust domain's.
        """
        if bundle.trust_domain != self._bundle.trust_domain:
            raise InvalidBundle(f"bundle of {bundle.trust_domain!r}, but this node is of {self._bundle.trust_domain!r}")
        if bundle.roots == self._bundle.roots and bundle.revision == self._bundle.revision:
            return
        self._bundle = bundle
        self._cache.keep(_BUNDLE, bundle.to_proto().SerializeToString())
        self._changed()

    def renew_now(self, reason: str) -> None:
        """Renews all certificates at once."""
        _log.info("renewing all workload certificates", reason=reason)
        for held in self._held.values():
            held.due, held.retry, held.error = self._clock(), _FIRST_RETRY, ""
        self._wake()

    def renew_denied(self, deny_list: DenyList) -> None:
        """Renews at once the certificates that are denied by their number: their holders are still in the mesh."""
        now = self._clock()
        for name, held in self._held.items():
            svid = held.svid
            if svid is None or not deny_list.of_serial(str(svid.spiffe_id), svid.leaf.serial_number, now.timestamp()):
                continue
            _log.warning("workload certificate denied", entry=name, serial=svid.serial)
            held.due, held.retry, held.error = now, _FIRST_RETRY, ""
            self._wake()

    async def ensure(self, workload: Workload, timeout_s: float) -> X509Svid:
        """Returns a workload's certificate as soon as there is one, and its files are there if it is admitted.

        Raises:
            CredentialMissing: there is none within `timeout_s`, or the control plane has refused it.
        """
        name = workload.entry_name
        held = self._held.setdefault(name, _Held())
        if self._good(name) is None:
            held.due, held.error = self._clock(), ""
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                while (svid := self.svid(workload.id)) is None or not self._is_published(workload):
                    if held.error and svid is None:
                        raise CredentialMissing(f"no certificate for {name}: {held.error}")
                    if workload.id not in self._registry.workloads:
                        raise CredentialMissing(f"{workload.id} has ended")
                    await self._settled.wait()
        except TimeoutError:
            reason = self._unpublished.get(workload.id) or held.error or "the control plane has not answered"
            raise CredentialMissing(f"no certificate for {name}: {reason}") from None
        return svid

    async def run(self) -> None:
        """Renews and publishes until it is cancelled; a control plane that is slow to sign holds up no publishing."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_up, self._to_renew, self._renew_due, self._dues)
            group.start_soon(self._keep_up, self._to_publish, self._publish, self._ends)

    async def _keep_up(
        self, wanted: asyncio.Event, work: Callable[[], Awaitable[None]], moments: Callable[[], Iterable[datetime]]
    ) -> None:
        while True:
            wanted.clear()
            self._follow_registry()
            await work()
            self._settle()
            with contextlib.suppress(TimeoutError):
                pause = min([_LOOK, *(moment - self._clock() for moment in moments())])
                async with asyncio.timeout(max(pause.total_seconds(), 0.0)):
                    await wanted.wait()

    def _wake(self) -> None:
        self._to_renew.set()
        self._to_publish.set()

    # -- renewing

    def _follow_registry(self) -> None:
        """Holds what the running workloads need; forgets what belongs to entries that are gone."""
        found = False
        for workload in self._registry.workloads.values():
            if workload.entry_name not in self._held:
                self._held[workload.entry_name] = _Held(due=self._clock())
            held = self._held[workload.entry_name]
            if held.svid is None and (cached := self._cached_svid(workload)) is not None:
                held.svid, held.due = cached, renew_at(cached.not_before, cached.not_after, self._rng)
                found = True
        for name in [name for name in self._held if name not in self._registry.entries]:
            del self._held[name]
            self._cache.remove(_item(name))
        if found:
            self._changed()

    def _needed(self) -> set[str]:
        return {workload.entry_name for workload in self._registry.workloads.values()}

    async def _renew_due(self) -> None:
        now = self._clock()
        needed = self._needed()
        due = [name for name, held in self._held.items() if name in needed and held.due is not None and held.due <= now]
        for start in range(0, len(due), _MAX_BATCH):
            await self._renew(due[start : start + _MAX_BATCH])

    async def _renew(self, names: Sequence[str]) -> None:
        keys = [new_key() for _ in names]
        requests = []
        for name, key in zip(names, keys, strict=True):
            tenant, _, entry = name.partition("/")
            requests.append(node_pb.WorkloadCsr(tenant=tenant, entry=entry, csr=make_csr(key)))
        try:
            answers = await self._sign(requests)
        except (OSError, grpc.RpcError) as error:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            for name in names:
                self._failed(name, f"the control plane could not be asked: {reason}")
            return
        if len(answers) != len(names):
            unusable = node_pb.SignedWorkload(code=13, message="the control plane answered another number")
            answers = [unusable] * len(names)
        for name, key, answer in zip(names, keys, answers, strict=True):
            if answer.code or not answer.chain:
                reason = answer.message or f"refused with code {answer.code}"
                self._failed(name, reason, asked_for(answer.retry_after, self._rng))
                continue
            try:
                chain = [x509.load_der_x509_certificate(der) for der in answer.chain]
                self._accept(name, X509Svid.of(chain, key))
            except (CertsError, *UNREADABLE) as error:
                self._failed(name, f"the control plane's answer cannot be used: {error}")
        self._changed()

    def _accept(self, name: str, svid: X509Svid) -> None:
        entry = self._registry.entries.get(name)
        held = self._held.get(name)
        if entry is None or held is None:
            return  # it went away while we asked
        tenant, service = entry.entry.metadata.tenant, entry.entry.spec.service
        if svid.spiffe_id != SpiffeId.workload(self._bundle.trust_domain, tenant, service):
            raise InvalidSvid(f"certificate of {svid.spiffe_id} for entry {name}")
        verify_chain(svid.chain_der(), {self._bundle.trust_domain: self._bundle}, self._clock())
        held.svid, held.error, held.retry = svid, "", _FIRST_RETRY
        held.due = renew_at(svid.not_before, svid.not_after, self._rng)
        self._cache.keep(
            _item(name), json.dumps({"chain": svid.chain_pem().decode(), "key": svid.key_pem().decode()}).encode()
        )
        _log.info("workload certificate renewed", entry=name, serial=svid.serial, not_after=svid.not_after.isoformat())

    def _failed(self, name: str, reason: str, wait: timedelta = timedelta(0)) -> None:
        held = self._held.get(name)
        if held is None:
            return
        held.error = reason
        held.due = self._clock() + max(held.retry * self._rng.uniform(0.5, 1.0), wait)
        held.retry = min(held.retry * 2, _LAST_RETRY)
        _log.warning("workload certificate not renewed", entry=name, reason=reason)

    def _good(self, name: str) -> X509Svid | None:
        held = self._held.get(name)
        if held is None or held.svid is None or held.svid.not_after <= self._clock():
            return None
        return held.svid

    def _dues(self) -> Iterator[datetime]:
        """When something is to be renewed."""
        needed = self._needed()
        return (held.due for name, held in self._held.items() if name in needed and held.due is not None)

    def _ends(self) -> Iterator[datetime]:
        """When something published is to be taken away."""
        now = self._clock()
        return (held.svid.not_after for held in self._held.values() if held.svid and held.svid.not_after > now)

    # -- publishing

    def _is_published(self, workload: Workload) -> bool:
        if workload.is_ingress or not self._registry.is_admitted(workload.id):
            return True  # held back until the program is the one that the entry wants
        return (known := self._published.get(workload.id)) is not None and known[0] is workload

    async def _publish(self) -> None:
        expired = False
        for workload in list(self._registry.workloads.values()):
            svid = self._good(workload.entry_name)
            if svid is None:
                expired |= await self._withdraw(workload.id)
            elif workload.is_ingress:
                continue  # its Envoy has it of us alone
            elif self._registry.is_admitted(workload.id):
                await self._publish_one(workload, svid)
            else:
                await self._withdraw(workload.id)
        for identifier in {*self._published, *self._unpublished}:
            if identifier not in self._registry.workloads:
                self._unpublished.pop(identifier, None)
                await self._withdraw(identifier)
        if expired:
            self._changed()

    async def _publish_one(self, workload: Workload, svid: X509Svid) -> None:
        present = (workload, svid, self._bundle, self.foreign())
        known = self._published.get(workload.id)
        if known is not None and _are_same(known, present):
            return
        try:
            named = credential_files.content(svid, self._bundle, present[3])
            await asyncio.to_thread(credential_files.write, workload, named)
        except OSError as error:
            if workload.id not in self._unpublished:
                _log.error("credentials not published", workload=workload.id, reason=str(error))
            self._unpublished[workload.id] = f"{workload.credentials} cannot be written: {error.strerror}"
            return
        self._published[workload.id] = present
        self._unpublished.pop(workload.id, None)
        if self._registry.workloads.get(workload.id) is not workload:
            await self._withdraw(workload.id)  # it ended while we wrote

    async def _withdraw(self, identifier: str) -> bool:
        known = self._published.pop(identifier, None)
        if known is not None:
            await asyncio.to_thread(credential_files.remove, known[0].credentials)
            _log.info("credentials removed", workload=identifier)
        return known is not None

    # -- on disk

    def _cached_bundle(self, given: Bundle) -> Bundle:
        body = self._cache.load(_BUNDLE)
        if body is None:
            return given
        try:
            cached = Bundle.from_proto(node_pb.Bundle.FromString(body))
        except (CertsError, ValueError) as error:
            self._cache.set_aside(_BUNDLE, str(error))
            return given
        return cached if cached.trust_domain == given.trust_domain else given

    def _cached_svid(self, workload: Workload) -> X509Svid | None:
        item = _item(workload.entry_name)
        body = self._cache.load(item)
        if body is None:
            return None
        try:
            content = json.loads(body)
            svid = X509Svid.load(content["chain"].encode(), content["key"].encode())
            if svid.not_after > self._clock():
                verify_chain(svid.chain_der(), {self._bundle.trust_domain: self._bundle}, self._clock())
        except PeerRefused as error:
            _log.info("cached certificate not used", entry=workload.entry_name, reason=str(error))
            return None
        except (CertsError, ValueError, KeyError, TypeError, AttributeError):
            self._cache.set_aside(item, "no certificate with its key")
            return None
        return svid if svid.spiffe_id == workload.spiffe_id and svid.not_after > self._clock() else None

    def _changed(self) -> None:
        self._wake()
        for callback in self._listeners:
            callback()

    def _settle(self) -> None:
        # Who waits holds the old event; whoever comes next waits for the next round.
        event, self._settled = self._settled, asyncio.Event()
        event.set()
        for callback in self._watchers:
            callback()


def _are_same(these: tuple[object, ...], those: tuple[object, ...]) -> bool:
    return all(this is that for this, that in zip(these, those, strict=True))


def _item(entry: str) -> str:
    return _SVID + entry.replace("/", ".")  # both are DNS labels, which hold no dot
