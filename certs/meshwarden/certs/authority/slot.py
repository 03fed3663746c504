"""The life of roots: each is in one state, and a trust domain trusts every root that has one.

    PREPARED   trusted already, signs nothing yet
    ACTIVE     the one that issuing certificates come from
    OLD        signs no more; what it has signed is good until it ends
    TAINTED    must not be relied on: what it has signed is renewed at once

    prepare → PREPARED → activate → ACTIVE → (another is activated) → OLD → taint → TAINTED
    revoke takes a root that isn't ACTIVE out of the bundle

What is here is pure; engines keep the slots and the keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from meshwarden.certs.error import CertsError

MAX_ROOTS: Final = 8
"""So many at once: each node and each workload reads them all."""
# Fewer characters of a fingerprint name a root for nobody.
MIN_FINGERPRINT: Final = 6


class RootRefused(CertsError):
    """What is asked for would break the mesh, or means no root; the message says what to do first."""


class UnknownRoot(RootRefused):
    """There is no such root, or key."""


class SlotState(StrEnum):
    """What a root is there for."""

    PREPARED = "PREPARED"
    ACTIVE = "ACTIVE"
    OLD = "OLD"
    TAINTED = "TAINTED"


@dataclass(frozen=True)
class RootState:
    """A root and the state that it is in."""

    # SHA-256 of the certificate in DER, in hexadecimal.
    fingerprint: str
    state: SlotState
    not_before: datetime
    not_after: datetime
    # When it came into this state.
    since: datetime
    # Whoever keeps it wants it to sign as soon as all trust it, whenever the active one ends.
    wanted: bool = False
    # Whose it is, where another region of the trust domain signs by it and we only trust it; empty for ours.
    region: str = ""

    @classmethod
    def of(cls, certificate: x509.Certificate, state: SlotState, since: datetime, region: str = "") -> "RootState":
        """Describes a root."""
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return cls(fingerprint_of(certificate), state, begin, end, since, region=region)


Roots = tuple[RootState, ...]


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Returns the SHA-256 of a certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def own(roots: Sequence[RootState]) -> Roots:
    """Returns those that are ours: other regions move on their own."""
    return tuple(root for root in roots if not root.region)


def active(roots: Sequence[RootState]) -> RootState:
    """Returns the root that signs."""
    return next(root for root in roots if root.state is SlotState.ACTIVE)


def prepared(roots: Sequence[RootState]) -> RootState | None:
    """Returns the root that is to sign next; None if there is none."""
    return next((root for root in roots if root.state is SlotState.PREPARED), None)


def find(roots: Sequence[RootState], fingerprint: str) -> RootState:
    """Returns the root that a fingerprint, or its beginning, means.

    Raises:
        UnknownRoot: it means none.
        RootRefused: it means several, or is too short to mean one.
    """
    found = [root for root in roots if root.fingerprint.startswith(fingerprint.lower())]
    if len(found) != 1 or len(fingerprint) < MIN_FINGERPRINT:
        known = ", ".join(root.fingerprint[:16] for root in roots)
        raise (RootRefused if found else UnknownRoot)(
            f"root {fingerprint[:64]!r}: {'means several' if found else 'there is none'}; give {MIN_FINGERPRINT} "
            f"characters or more of the fingerprint of one: {known}"
        )
    return found[0]


def check_room(roots: Sequence[RootState]) -> None:
    """Sees that one more root may be prepared.

    Raises:
        RootRefused: one is prepared already, or there are too many.
    """
    waiting = prepared(roots)
    if waiting is not None:
        raise RootRefused(f"root {waiting.fingerprint[:16]} is prepared already: activate it, or revoke it")
    if len(roots) >= MAX_ROOTS:
        raise RootRefused(f"there are {len(roots)} roots: revoke one of those that sign no more first")


def activated(roots: Sequence[RootState], fingerprint: str, now: datetime) -> Roots:
    """Makes a prepared root the one that signs.

    Raises:
        RootRefused: it isn't prepared, or has ended.
    """
    chosen = find(roots, fingerprint)
    if chosen.state is not SlotState.PREPARED:
        raise RootRefused(
            f"root {chosen.fingerprint[:16]} is {chosen.state}: only one that is prepared can be activated; prepare one"
        )
    if not chosen.not_before <= now < chosen.not_after:
        raise RootRefused(f"root {chosen.fingerprint[:16]} is not valid now: revoke it and prepare another")
    moved = {SlotState.ACTIVE: SlotState.OLD, SlotState.PREPARED: SlotState.ACTIVE}
    return tuple(_in(root, moved.get(root.state, root.state), now) for root in roots)


def tainted(roots: Sequence[RootState], fingerprint: str, now: datetime) -> Roots:
    """Marks a root as not to be relied on.

    Raises:
        RootRefused: it is the one that signs.
    """
    chosen = find(roots, fingerprint)
    _refuse_active(roots, chosen, "tainted")
    return tuple(_in(root, SlotState.TAINTED, now) if root is chosen else root for root in roots)


def revoked(roots: Sequence[RootState], fingerprint: str) -> Roots:
    """Leaves a root out: nothing that it has signed is good any more.

    Raises:
        RootRefused: it is the one that signs.
    """
    chosen = find(roots, fingerprint)
    _refuse_active(roots, chosen, "revoked")
    return tuple(root for root in roots if root is not chosen)


def _in(root: RootState, state: SlotState, now: datetime) -> RootState:
    return root if root.state is state else replace(root, state=state, since=now)


def _refuse_active(roots: Sequence[RootState], chosen: RootState, what: str) -> None:
    if chosen.state is not SlotState.ACTIVE:
        return
    next_one = prepared(roots)
    first = f"activate {next_one.fingerprint[:16]}" if next_one is not None else "prepare another, activate that"
    raise RootRefused(
        f"root {chosen.fingerprint[:16]} is the one that signs, and can't be {what} without another: {first} first"
    )
