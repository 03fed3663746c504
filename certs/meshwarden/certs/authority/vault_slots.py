"""Which issuers a PKI engine has, and what each root is there for: Vault keeps that itself, in the issuers' names.

    meshwarden-prepared                 trusted already, signs nothing yet; Vault lets one issuer alone have the name
    meshwarden-active-<since>-<id>      signs; of several, the last
    meshwarden-old-<since>-<id>         signs no more, and may not: its usage has no `issuing-certificates`
    meshwarden-tainted-…, -revoked-…    the same; a revoked one is trusted no more

So it holds for whoever uses the engine, in each region, after any restart, and whoever looks at Vault sees it. A change
is several requests; what one that was cut off leaves behind is read as it was meant, since the new root is named before
the old one.

Of the other issuers of the engine these count: at first its default, which signs; later a default that is none of ours,
which somebody wants to sign, and one that is called `next`, as Vault calls what `root/rotate` makes. Each is PREPARED
until it is activated. Whatever else is in the engine isn't trusted.

What is here is pure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.authority.slot import MAX_ROOTS, Roots, RootState, SlotState
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.error import UNREADABLE

PREPARED: Final = "meshwarden-prepared"
NEXT: Final = "next"
REVOKED: Final = "revoked"
USAGE: Final = {"old": "read-only,crl-signing", "tainted": "read-only,crl-signing", REVOKED: "read-only"}
"""What issuers may be used for that sign no more, by what they are called."""
_NAME: Final = re.compile(r"meshwarden-(active|old|tainted|revoked)-(\d{8}T\d{6}Z)-[0-9a-f]{1,8}")
_TIME: Final = "%Y%m%dT%H%M%SZ"
# The order of roots that began in one second.
_ORDER: Final = (SlotState.TAINTED, SlotState.OLD, SlotState.ACTIVE, SlotState.PREPARED)


@dataclass(frozen=True)
class Issuer:
    """A key of the engine that may sign, as it is called now."""

    id: str
    name: str
    is_default: bool
    # Its certificate and what leads from it to its root, which is last.
    chain: tuple[x509.Certificate, ...]

    @property
    def root(self) -> x509.Certificate:
        """What peers trust where it signs."""
        return self.chain[-1]

    @property
    def mark(self) -> tuple[str, datetime] | None:
        """What we have called it and since when; None if its name is none of ours, or says of no time."""
        found = _NAME.fullmatch(self.name)
        try:
            return (found[1], datetime.strptime(found[2], _TIME).replace(tzinfo=UTC)) if found is not None else None
        except ValueError:
            return None


@dataclass(frozen=True)
class Slot:
    """A root, its state, and the issuers that lead to it; the first of them signs."""

    state: RootState
    issuers: tuple[Issuer, ...]

    @property
    def signer(self) -> Issuer:
        """Who signs when the root does."""
        return self.issuers[0]


@dataclass(frozen=True)
class Kept:
    """All roots, as of one look at the engine."""

    slots: tuple[Slot, ...]

    @property
    def states(self) -> Roots:
        """Their states, in their order."""
        return tuple(slot.state for slot in self.slots)

    @property
    def active(self) -> Slot:
        """The one that signs."""
        return next(slot for slot in self.slots if slot.state.state is SlotState.ACTIVE)

    def of(self, fingerprint: str) -> Slot:
        """Returns the slot of a root that is in one."""
        return next(slot for slot in self.slots if slot.state.fingerprint == fingerprint)


@dataclass(frozen=True)
class Call:
    """What an issuer is to be called from now on, and used for; None leaves that as it is."""

    issuer: Issuer
    name: str
    usage: str | None = None


def name_of(issuer: Issuer, what: str, since: datetime) -> str:
    """Returns what to call an issuer of ours."""
    return f"meshwarden-{what}-{since.astimezone(UTC):{_TIME}}-{issuer.id[:8]}"


def is_of_interest(name: str, is_default: bool) -> bool:
    """Whether an issuer may count, by what the list of them says."""
    return is_default or name in (PREPARED, NEXT) or _NAME.fullmatch(name) is not None


def read_slots(issuers: Sequence[Issuer], before: Sequence[str] = ()) -> tuple[Kept, Call | None]:
    """Returns the roots with their states; and what the default is to be called first, where none has a name of ours.

    Args:
        issuers: of the engine, those that may count.
        before: fingerprints of the roots in the order in which they were known until now.

    Raises:
        AuthorityError: none of them may sign.
    """
    marks = {issuer: issuer.mark for issuer in issuers}
    active, call = _active(issuers, marks)
    states = _states(issuers, marks, active)
    found = _prepared(issuers, marks, active)
    if found is not None and found.root not in states and len(states) < MAX_ROOTS:
        state = RootState.of(found.root, SlotState.PREPARED, found.root.not_valid_before_utc)
        states[found.root] = replace(state, wanted=found.is_default)
    slots = [_slot(state, root, issuers, found, active) for root, state in states.items()]
    place = {fingerprint: index for index, fingerprint in enumerate(before)}
    slots.sort(key=lambda slot: (place.get(slot.state.fingerprint, len(place)), *_age(slot.state)))
    return Kept(tuple(slots)), call


def _active(
    issuers: Sequence[Issuer], marks: Mapping[Issuer, tuple[str, datetime] | None]
) -> tuple[Issuer, Call | None]:
    """Who signs, and how it is to be called if it isn't yet."""
    called = [(mark[1], issuer.id) for issuer, mark in marks.items() if mark is not None and mark[0] == "active"]
    if called:
        return next(issuer for issuer in issuers if issuer.id == max(called)[1]), None
    default = next((issuer for issuer in issuers if issuer.is_default), None)
    mark = marks[default] if default is not None else None
    if default is None or mark is not None:
        said = "none is the default" if default is None else f"the default is called {default.name}"
        raise AuthorityError(
            f"no issuer may sign: {said}. Make one the default that leads to a root with an EC or RSA key"
        )
    since = default.chain[0].not_valid_before_utc
    return default, Call(default, name_of(default, "active", since))


def _prepared(
    issuers: Sequence[Issuer], marks: Mapping[Issuer, tuple[str, datetime] | None], active: Issuer
) -> Issuer | None:
    """Who is to sign next: the one that we have made, or what whoever keeps the engine says."""
    known = {issuer.root for issuer, mark in marks.items() if mark is not None} | {active.root}
    new = [issuer for issuer in issuers if marks[issuer] is None and issuer.root not in known]
    by_name = {issuer.name: issuer for issuer in new}
    default = next((issuer for issuer in new if issuer.is_default), None)
    return by_name.get(PREPARED) or default or by_name.get(NEXT)


def _states(
    issuers: Sequence[Issuer], marks: Mapping[Issuer, tuple[str, datetime] | None], active: Issuer
) -> dict[x509.Certificate, RootState]:
    """The roots that were in a slot already: {root: state}."""
    mark = marks[active]
    began = mark[1] if mark is not None else active.chain[0].not_valid_before_utc
    found = {active.root: RootState.of(active.root, SlotState.ACTIVE, began)}
    revoked = {issuer.root for issuer in issuers if (mark := marks[issuer]) is not None and mark[0] == REVOKED}
    for issuer in issuers:
        mark = marks[issuer]
        if mark is None or issuer.root in revoked or issuer.root == active.root:
            continue
        state = SlotState.TAINTED if mark[0] == "tainted" else SlotState.OLD
        # Another was activated and this one is called active still: it is OLD since then.
        since = began if mark[0] == "active" else mark[1]
        if issuer.root not in found or state is SlotState.TAINTED:
            found[issuer.root] = RootState.of(issuer.root, state, since)
    return found


def _slot(
    state: RootState, root: x509.Certificate, issuers: Sequence[Issuer], prepared: Issuer | None, active: Issuer
) -> Slot:
    mine = [issuer for issuer in issuers if issuer.root == root]

    def rank(issuer: Issuer) -> tuple[bool, bool, str]:
        # Of several issuers below one root the default signs: which of them does is no matter of trust.
        return not issuer.is_default, issuer not in (prepared, active), issuer.id

    return Slot(state, tuple(sorted(mine, key=rank)))


def _age(state: RootState) -> tuple[datetime, int, str]:
    return state.not_before, _ORDER.index(state.state), state.fingerprint


def read_issuer(issuer_id: str, name: str, is_default: bool, chain: tuple[x509.Certificate, ...]) -> Issuer | None:
    """Returns an issuer; None if peers would not trust what it signs."""
    try:
        key = chain[-1].public_key()
    except UNREADABLE:
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return None
    if not all(is_authority(certificate) for certificate in chain):
        return None
    return Issuer(issuer_id, name, is_default, chain)
