"""What the certificates and tokens of other regions lead to, and which roots and keys their nodes know.

/identity/region-trust/<region>   the roots and JWT keys that a region has told us last

A region moves its own roots and keys on. The others trust them before it signs by them: it tells them, they tell their
nodes, and it asks whether these have acknowledged that. What it has told last holds while it is away, and over our
restarts.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.slot import MAX_ROOTS, RootState, SlotState
from meshwarden.certs.bundle import MAX_ROOT_SIZE_BYTES, InvalidBundle, is_authority
from meshwarden.certs.clock import Clock
from meshwarden.certs.csr import PublicKey, spki
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.controlplane.regions.link import ANSWER_S, Link, Untrue
from meshwarden.controlplane.store.port import ANY, Delete, Put, Store
from meshwarden.v1.node_service_pb2 import JwtKey
from meshwarden.v1.region_service_pb2 import GetTrustRequest, GetTrustResponse, RegionRoot

PREFIX: Final = "/identity/region-trust/"
# A region that has said nothing for so long is not known to trust anything.
SILENT: Final = timedelta(seconds=30)
MAX_TRUSTED: Final = 64
MAX_ROOTS_OF_OTHERS: Final = 48
MAX_KEYS_OF_OTHERS: Final = 16
"""So many of all other regions at most: each node and each workload reads them all."""

log = structlog.get_logger()


@dataclass(frozen=True)
class OtherRoot:
    """A root of another region."""

    state: RootState
    certificate: x509.Certificate


@dataclass(frozen=True)
class _Word:
    """What a region has said last since we have started."""

    heard: datetime
    trusted: frozenset[str]
    jwt_trusted: frozenset[str]


@dataclass(frozen=True)
class OtherKey:
    """A key by which another region signs JWT-SVIDs."""

    kid: str
    key: PublicKey
    tainted: bool


@dataclass(frozen=True)
class _Told:
    """What a region issues by."""

    roots: tuple[OtherRoot, ...] = ()
    keys: tuple[OtherKey, ...] = ()


class RegionTrust:
    """What the other regions issue by. `ask` asks."""

    def __init__(self, store: Store, regions: Sequence[str], clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._told: dict[str, _Told] = dict.fromkeys(regions, _Told())
        self._words: dict[str, _Word] = {}
        self._listeners: list[Callable[[], None]] = []
        self.roots: tuple[OtherRoot, ...] = ()
        """Of all other regions; the same object until one of them changes."""
        self.keys: tuple[OtherKey, ...] = ()
        """Of all other regions; each id once."""

    @classmethod
    async def open(cls, store: Store, regions: Sequence[str], clock: Clock) -> Self:
        """Reads what was told before, and forgets what was told by regions that are others no more.

        Raises:
            StoreError: the store can't be read.
        """
        made = cls(store, regions, clock)
        for record in (await store.range(PREFIX)).records:
            region = record.key.removeprefix(PREFIX)
            if region in made._told:
                made._told[region] = _decode(region, record.value)
            else:
                await store.commit([Delete(record.key, ANY)])
        made._gather()
        return made

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change of what other regions issue by."""
        self._listeners.append(callback)

    def missing(self, fingerprint: str) -> dict[str, str]:
        """The regions where nodes would be cut off if certificates led to a root by now: {"region us": why}."""
        return self._lagging(lambda word: fingerprint in word.trusted)

    def missing_jwt(self, kid: str) -> dict[str, str]:
        """The regions where nodes would refuse the tokens that a JWT key signs by now: {"region us": why}."""
        return self._lagging(lambda word: kid in word.jwt_trusted)

    def _lagging(self, knows: Callable[[_Word], bool]) -> dict[str, str]:
        found, now = {}, self._clock()
        for region in self._told:
            word = self._words.get(region)
            if word is None or now - word.heard > SILENT:
                found[f"region {region}"] = "does not say whether its nodes trust it"
            elif not knows(word):
                found[f"region {region}"] = "its nodes have not all acknowledged it yet"
        return found

    async def hear(self, region: str, answer: GetTrustResponse) -> None:
        """Takes what a region says of what it issues by, and of its nodes.

        Raises:
            Untrue: no control plane of ours would say so; what it said before holds.
            StoreError: it can't be kept.
        """
        trusted = max(len(answer.trusted), len(answer.jwt_trusted))
        if not 0 < len(answer.roots) <= MAX_ROOTS or trusted > MAX_TRUSTED:
            raise Untrue(f"{len(answer.roots)} roots, {trusted} trusted")
        told = _Told(tuple(_read(region, root) for root in answer.roots), _keys(answer.jwt_keys))
        rest = [one for name, one in self._told.items() if name != region]
        roots = len(told.roots) + sum(len(one.roots) for one in rest)
        keys = len(told.keys) + sum(len(one.keys) for one in rest)
        if roots > MAX_ROOTS_OF_OTHERS or keys > MAX_KEYS_OF_OTHERS:
            raise Untrue(f"{roots} roots and {keys} keys of other regions: too many for nodes to read")
        if told != self._told[region]:
            await self._store.commit([Put(PREFIX + region, _encode(told), ANY)])
            self._told[region] = told
            self._gather()
            log.info("region.trust", region=region, roots=[root.state.fingerprint[:16] for root in told.roots])
            for callback in self._listeners:
                callback()
        self._words[region] = _Word(self._clock(), frozenset(answer.trusted), frozenset(answer.jwt_trusted))

    async def ask(self, link: Link) -> None:
        """Asks a region once.

        Raises:
            grpc.aio.AioRpcError: it does not answer, or refuses.
            Untrue: it says what no control plane of ours would.
            StoreError: what it says can't be kept.
            OSError: we can't prove ourselves yet.
        """
        answer = await (await link.stub()).GetTrust(GetTrustRequest(), timeout=ANSWER_S)
        await self.hear(link.peer.region, answer)

    def _gather(self) -> None:
        roots = tuple(root for told in self._told.values() for root in told.roots)
        if roots != self.roots:
            self.roots = roots
        self.keys = tuple({key.kid: key for told in self._told.values() for key in told.keys}.values())


def _read(region: str, told: RegionRoot) -> OtherRoot:
    """Reads a root as another region tells it.

    Raises:
        Untrue: it is none.
    """
    if told.state not in _STATES or not 0 < len(told.certificate) <= MAX_ROOT_SIZE_BYTES:
        raise Untrue(f"a root of {len(told.certificate)} bytes in state {told.state}")
    try:
        since = told.since.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise Untrue("a root since no time") from None
    return _root(region, told.certificate, _STATES[told.state], since)


def _root(region: str, der: bytes, state: SlotState, since: datetime) -> OtherRoot:
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(certificate)
        sound = is_authority(certificate)
        described = RootState.of(certificate, state, since, region)
    except (TypeError, *UNREADABLE):
        sound = False
    if not sound:
        raise Untrue("a root that is no certificate authority of its own")
    return OtherRoot(described, certificate)


def _keys(told: Iterable[JwtKey]) -> tuple[OtherKey, ...]:
    """Reads keys as another region tells them.

    Raises:
        Untrue: there is what is no key.
    """
    keys = tuple(told)
    try:
        read = JwtBundle.from_proto("other", keys).keys
    except InvalidBundle as error:
        raise Untrue(str(error)) from None
    return tuple(OtherKey(key.kid, read[key.kid], key.tainted) for key in keys)


def _encode(told: _Told) -> bytes:
    keys = [
        {"kid": key.kid, "key": base64.b64encode(spki(key.key)).decode(), "tainted": key.tainted} for key in told.keys
    ]
    return json.dumps({"v": 1, "roots": [_row(root) for root in told.roots], "jwt_keys": keys}).encode()


def _row(root: OtherRoot) -> Mapping[str, str]:
    der = root.certificate.public_bytes(Encoding.DER)
    return {
        "certificate": base64.b64encode(der).decode(),
        "state": root.state.state.value,
        "since": root.state.since.isoformat(),
    }


def _decode(region: str, value: bytes) -> _Told:
    """Reads what we have stored; what can't be read is asked for again."""
    try:
        said = json.loads(value)
        roots = tuple(
            _root(
                region,
                base64.b64decode(row["certificate"], validate=True),
                SlotState(row["state"]),
                datetime.fromisoformat(row["since"]),
            )
            for row in said["roots"]
        )
        keys = [
            JwtKey(kid=row["kid"], public_key=base64.b64decode(row["key"], validate=True), tainted=row["tainted"])
            for row in said["jwt_keys"]
        ]
        return _Told(roots, _keys(keys))
    except (Untrue, ValueError, KeyError, TypeError) as error:
        log.warning("region.trust_unreadable", region=region, reason=str(error))
        return _Told()


_STATES: Final = {1: SlotState.PREPARED, 2: SlotState.ACTIVE, 3: SlotState.OLD, 4: SlotState.TAINTED}
"""{number of `RootState.State`: state}"""
