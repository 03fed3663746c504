"""The keys of JWT-SVIDs as the store has them: which there are, in which state, and what becomes of them.

    PREPARED   published, signs nothing yet
    ACTIVE     signs
    OLD        signs no more; what it has signed is good until it ends
    TAINTED    must not be relied on: agents drop what it has signed and fetch anew

    prepare → PREPARED → activate → ACTIVE → (another is activated) → OLD → taint → TAINTED
    revoke takes a key that isn't ACTIVE out of the bundle

What is here is pure.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from meshwarden.certs.authority.slot import RootRefused, SlotState, UnknownRoot
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.jose import InvalidJose, jwk, parse_jwk
from meshwarden.certs.jwt_bundle import is_kid
from meshwarden.certs.jwt_svid import TTL
from meshwarden.controlplane.identity.record import RecordError

KEYS: Final = "/identity/jwt-key/"
LIFE: Final = timedelta(days=7)
PREPARE_AT: Final = LIFE / 2
ACTIVATE_AT: Final = LIFE * 5 / 6
HOLD: Final = timedelta(hours=1)
"""How long a record is good; whoever has its key extends it."""
SPREAD: Final = timedelta(minutes=5)
"""How long it takes until everybody has read that a key is there: what our endpoints say of how often to look."""
# So much of a key's id is enough to mean it.
MIN_KID: Final = 6
BY_ITSELF: Final = "rotation"
SIGNING: Final = (SlotState.PREPARED, SlotState.ACTIVE)


@dataclass(frozen=True)
class JwtKeyRecord:
    """A published key."""

    kid: str
    public_key: PublicKey
    state: SlotState
    # When it first signed, or was made; and when it came into its state.
    begun: datetime
    since: datetime
    # Until when it proves anything, aware.
    end: datetime
    # The private key, sealed; empty if its process has it in memory alone, or nobody any more.
    sealed: str = ""

    @property
    def key(self) -> str:
        """The store key."""
        return KEYS + self.kid

    def extended(self, now: datetime) -> "JwtKeyRecord":
        """Returns it as good for a while more; one that had ended is published anew."""
        return replace(self, end=now + HOLD, since=self.since if now < self.end else now)

    def moved(self, state: SlotState, now: datetime) -> "JwtKeyRecord":
        """Returns it in another state: one that signs no more is good for what it has signed, and has no key."""
        if state is SlotState.ACTIVE:
            return replace(self, state=state, begun=now, since=now, end=now + HOLD)
        end = now + HOLD if state is SlotState.OLD else min(self.end, now + 2 * TTL)
        return replace(self, state=state, since=now, end=end, sealed="")

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        words = {
            "v": 2,
            "jwk": jwk(self.public_key),
            "state": self.state.value,
            "begun": self.begun.isoformat(),
            "since": self.since.isoformat(),
            "end": self.end.isoformat(),
            "sealed": self.sealed,
        }
        return json.dumps(words).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "JwtKeyRecord":
        """Reads stored bytes; a record of before keys had states is of one that signs no more.

        Raises:
            RecordError: they are no key's.
        """
        try:
            words: dict[str, Any] = json.loads(value)
            public_key, kid = parse_jwk(words["jwk"]), key.removeprefix(KEYS)
            end = datetime.fromisoformat(words["end"])
            begun, since = (datetime.fromisoformat(words.get(name, words["end"])) for name in ("begun", "since"))
            state, sealed = SlotState(words.get("state", "OLD")), words.get("sealed", "")
            aware = all(time.tzinfo is not None for time in (end, begun, since))
            if public_key is not None and is_kid(kid) and aware and isinstance(sealed, str):
                return cls(kid, public_key, state, begun, since, end, sealed)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidJose):
            pass
        raise RecordError(f"store key {key}: not a JWT key")


def find(keys: Sequence[JwtKeyRecord], kid: str) -> JwtKeyRecord:
    """Returns the key that an id, or its beginning, means.

    Raises:
        UnknownRoot: it means none.
        RootRefused: it means several, or is too short to mean one.
    """
    found = [record for record in keys if record.kid.startswith(kid)]
    if len(found) != 1 or len(kid) < MIN_KID:
        known = ", ".join(record.kid[:16] for record in keys)
        raise (RootRefused if found else UnknownRoot)(
            f"JWT key {kid[:64]!r}: {'means several' if found else 'there is none'}; give {MIN_KID} characters or more "
            f"of the id of one: {known}"
        )
    return found[0]


def refuse_signing(chosen: JwtKeyRecord, what: str) -> None:
    """Sees that a key may be given up.

    Raises:
        RootRefused: it is the one that signs.
    """
    if chosen.state is SlotState.ACTIVE:
        raise RootRefused(
            f"JWT key {chosen.kid[:16]} signs, and can't be {what} without another: `meshwarden ca jwt prepare`, then "
            "activate that"
        )


def refuse_early(chosen: JwtKeyRecord, now: datetime, missing: Mapping[str, str]) -> None:
    """Sees that a key may sign.

    Args:
        chosen: the key.
        now: the present, aware.
        missing: the nodes that don't know it, {which: why}.

    Raises:
        RootRefused: it isn't prepared, or others may not know it yet.
    """
    if chosen.state is not SlotState.PREPARED:
        raise RootRefused(
            f"JWT key {chosen.kid[:16]} is {chosen.state}: only one that is prepared can be activated; prepare one"
        )
    ready = chosen.since + SPREAD
    if now < ready:
        raise RootRefused(
            f"JWT key {chosen.kid[:16]} is published since {chosen.since:%H:%M:%S}Z, and others look every "
            f"{SPREAD.total_seconds() / 60:.0f} minutes: wait until {ready:%H:%M:%S}Z, or use --force and have its "
            "tokens refused by those who haven't looked"
        )
    if missing:
        lagging = ", ".join(f"{node} {why}" for node, why in itertools.islice(missing.items(), 8))
        raise RootRefused(
            f"JWT key {chosen.kid[:16]}: {lagging}{' and others' if len(missing) > 8 else ''}; wait for them, or use "
            "--force and have its tokens refused there until then"
        )


def age(record: JwtKeyRecord) -> tuple[datetime, str]:
    """By what keys are sorted: those first that have been there longest."""
    return record.begun, record.kid


def next_of(record: JwtKeyRecord, *, waiting: JwtKeyRecord | None, active: JwtKeyRecord | None) -> tuple[str, datetime]:
    """Returns what becomes of a key by itself, and when; "" for nothing.

    Args:
        record: the key.
        waiting: the one that is prepared beside it.
        active: the one that signs.
    """
    if record.state is SlotState.ACTIVE:
        return ("", record.begun) if waiting is not None else ("prepare", record.begun + PREPARE_AT)
    if record.state is SlotState.PREPARED:
        due = record.since + SPREAD
        return "activate", due if active is None else max(due, active.begun + ACTIVATE_AT)
    return "revoke", record.end
