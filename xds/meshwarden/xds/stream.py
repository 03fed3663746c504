"""What both variants of the protocol share: events, bounds, names.

Errors: `Misuse`, a client goes beyond the bounds; its stream ends with RESOURCE_EXHAUSTED or INVALID_ARGUMENT.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final

from meshwarden.xds import api
from meshwarden.xds.snapshot import Snapshot

WILDCARD: Final = "*"
UNSAID: Final = "rejected without a reason"
WILDCARD_TYPES: Final = frozenset({api.LISTENER, api.CLUSTER})
"""The types of which a client may ask for all; elsewhere an empty list of names asks for nothing."""

_ROUTING: Final = (api.LISTENER, api.ROUTE)
_TARGETS: Final = (api.CLUSTER, api.ENDPOINT)
_RANK: Final = {type_url: rank for rank, type_url in enumerate(api.TYPE_URLS)}


class Misuse(Exception):
    """A client asks for more than it may."""


@dataclass(frozen=True)
class Bounds:
    """What one stream may ask for: types, names of one type, characters of a name."""

    types: int = 16
    names: int = 20_000
    name_length: int = 512

    def check_types(self, count: int) -> None:
        """Raises: Misuse: if that many types are too many."""
        if count > self.types:
            raise Misuse(f"a stream may ask for {self.types} types of resources")

    def check_names(self, count: int, names: Iterable[str]) -> None:
        """Raises: Misuse: if that many names are too many, or one of `names` is too long."""
        if count > self.names:
            raise Misuse(f"a stream may ask for {self.names} names of one type, not {count}")
        for name in names:
            if len(name) > self.name_length:
                raise Misuse(f"a name may have {self.name_length} characters, not {len(name)}")


@dataclass(frozen=True)
class Verdict:
    """A client's answer to one push: an ACK, or a NACK if there is a message."""

    type_url: str
    version: str
    message: str | None = None


@dataclass(frozen=True)
class Push:
    """One response, ready for the wire."""

    type_url: str
    version: str
    nonce: str
    payload: bytes


def in_order(type_urls: Iterable[str]) -> list[str]:
    """Types so that what is pointed to goes out before what points to it."""
    return sorted(type_urls, key=lambda type_url: (_RANK.get(type_url, len(_RANK)), type_url))


def lacks_endpoints(
    snapshot: Snapshot, clusters: Container[str], refused: Container[str], endpoints: Container[str]
) -> bool:
    """Whether the endpoints of a cluster that the client has, and did not refuse, are known but not yet sent to it."""
    known = snapshot.named(api.ENDPOINT)
    return any(
        name in clusters and name not in refused and item.endpoint_name in known and item.endpoint_name not in endpoints
        for name, item in snapshot.named(api.CLUSTER).items()
    )


def is_target(type_url: str) -> bool:
    """Whether routes point to this type, so that its deletions wait until the routes have moved."""
    return type_url in _TARGETS


def is_routing(type_url: str) -> bool:
    """Whether this type points to clusters."""
    return type_url in _ROUTING
