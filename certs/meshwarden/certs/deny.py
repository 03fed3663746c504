"""Who is refused though its certificate is good: revoked identities and single certificates.

InvalidDeny (CertsError)   what is to be denied is neither an identity nor a serial number
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from meshwarden.certs.clock import Clock, seconds_of
from meshwarden.certs.error import CertsError
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.v1 import node_service_pb2

MAX_DENIES = 10_000
_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_MAX_SERIAL_TEXT = 128


class InvalidDeny(CertsError):
    """What is to be denied can't be."""


def parse_serial(text: str) -> str:
    """Reads a serial number in hexadecimal as tools write it: with colons, in upper case, with leading zeros.

    Raises:
        InvalidDeny: it is none: RFC 5280 §4.1.2.2 has positive ones of at most 20 octets.
    """
    # Longer texts are no serial number however they are written, and are not looked at.
    found = text.strip().replace(":", "").lower().lstrip("0") if len(text) <= _MAX_SERIAL_TEXT else ""
    if _SERIAL.fullmatch(found) is None:
        raise InvalidDeny(f"serial number {text[:100]!r}: give 1 to 40 hexadecimal digits, not all zero")
    return found


@dataclass(frozen=True)
class Deny:
    """One identity, or one certificate, that is refused until `not_after`.

    Attributes:
        spiffe_id: the identity; of a certificate the one that it must bear to be meant, or empty for any.
        serial: the certificate's serial number in hexadecimal; empty for every certificate of the identity.
        not_after: when it ends, aware.
    """

    spiffe_id: str
    serial: str
    not_after: datetime

    @classmethod
    def of(cls, spiffe_id: str, serial: str, not_after: datetime) -> "Deny":
        """Reads what is to be denied.

        Raises:
            InvalidDeny: it names nothing, or what it names is no SPIFFE ID or no serial number.
        """
        if not spiffe_id and not serial:
            raise InvalidDeny("a deny names a SPIFFE ID, a serial number, or both")
        try:
            identity = str(SpiffeId.parse(spiffe_id)) if spiffe_id else ""
        except InvalidSpiffeId as error:
            raise InvalidDeny(str(error)) from None
        return cls(identity, parse_serial(serial) if serial else "", not_after)

    def __str__(self) -> str:
        if not self.serial:
            return self.spiffe_id
        return f"serial {self.serial}" + (f" of {self.spiffe_id}" if self.spiffe_id else "")


class DenyList:
    """All denies of one moment: immutable, and replaced as a whole."""

    def __init__(self, denies: Iterable[Deny] = (), revision: int = 0) -> None:
        """Takes the denies, and the store revision that they are of."""
        self.revision = revision
        self._denies = tuple(denies)
        self._until: dict[tuple[str, int], float] = {}
        for deny in self._denies:
            key = (deny.spiffe_id, int(deny.serial, 16) if deny.serial else 0)
            self._until[key] = max(self._until.get(key, 0.0), deny.not_after.timestamp())

    def __bool__(self) -> bool:
        return bool(self._denies)

    def __len__(self) -> int:
        return len(self._denies)

    def __iter__(self) -> Iterator[Deny]:
        return iter(self._denies)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DenyList) and (self.revision, self._denies) == (other.revision, other._denies)

    def __hash__(self) -> int:
        return hash((self.revision, self._denies))

    def names(self, spiffe_id: str, serial: int, now_s: float) -> str:
        """Why an identity with a certificate is refused; empty if it isn't.

        Args:
            spiffe_id: whose it is.
            serial: the certificate's number; 0 for the identity as such.
            now_s: the present, in seconds since 1970.
        """
        until = self._until.get
        if until((spiffe_id, 0), 0.0) >= now_s:
            return "this identity was revoked"
        return "this certificate was revoked; renew it" if self.of_serial(spiffe_id, serial, now_s) else ""

    def of_serial(self, spiffe_id: str, serial: int, now_s: float) -> bool:
        """Whether one certificate of an identity is refused by its number, whatever is said of the identity."""
        until = self._until.get
        return serial > 0 and max(until((spiffe_id, serial), 0.0), until(("", serial), 0.0)) >= now_s

    def to_proto(self) -> node_service_pb2.DenyList:
        """Returns the message that carries them."""
        message = node_service_pb2.DenyList(revision=self.revision)
        for deny in self._denies:
            item = message.denies.add(spiffe_id=deny.spiffe_id, serial=deny.serial)
            item.not_after.FromDatetime(deny.not_after)
        return message

    @classmethod
    def from_proto(cls, message: node_service_pb2.DenyList) -> "DenyList":
        """Reads the message.

        Raises:
            InvalidDeny: there are too many, or one of them is none. Then the list that was there must stand: who
                can't read who is refused can't say who isn't.
        """
        if len(message.denies) > MAX_DENIES:
            raise InvalidDeny(f"{len(message.denies)} denies: at most {MAX_DENIES} are taken")
        try:
            denies = [
                Deny.of(item.spiffe_id, item.serial, item.not_after.ToDatetime(tzinfo=UTC)) for item in message.denies
            ]
        except ValueError as error:
            raise InvalidDeny(f"deny list: a time that is none: {error}") from None
        return cls(denies, message.revision)


class Denied:
    """The hook of `PeerVerifier`: what is denied at present, looked at at each call."""

    def __init__(self, clock: Clock, deny_list: DenyList | None = None) -> None:
        """Denies what `deny_list` says; `present` is to be set when that changes."""
        self.present = deny_list if deny_list is not None else DenyList()
        self._now_s = seconds_of(clock)

    def __call__(self, peer: VerifiedPeer) -> str | None:
        """Why a peer is refused, or None."""
        present = self.present
        if not present:
            return None
        return present.names(str(peer.spiffe_id), peer.leaf.serial_number, self._now_s()) or None

    def identity(self, spiffe_id: SpiffeId) -> str:
        """Why an identity as such is refused, so that nothing is issued to it; empty if it isn't."""
        return self.present.names(str(spiffe_id), 0, self._now_s())


def last_end(ttl: timedelta, now: datetime) -> datetime:
    """When the last certificate has ended that was issued by now for at most `ttl`, in whole seconds."""
    return (now + ttl).replace(microsecond=0) + timedelta(seconds=1)
