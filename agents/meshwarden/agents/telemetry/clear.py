"""Who still calls this node's services in the clear: those that say for a time that one may."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

OTHERS: Final = "others"
"""Stands for all addresses that there was no room for."""
_MAX_ADDRESSES: Final = 32  # of a service
_MAX_SERVICES: Final = 64


@dataclass
class Seen:
    """Calls from an address."""

    count: int
    last: datetime


class ClearCallers:
    """Counts calls in the clear since the agent's start, by service and address."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, Seen]] = {}

    def add(self, service: str, address: str, now: datetime) -> None:
        """Counts a call.

        Args:
            service: `<tenant>/<service>`, the one called.
            address: whence it came, as an Envoy says; what is no IP address is one of the others.
            now: the present.
        """
        if service not in self._seen and len(self._seen) >= _MAX_SERVICES:
            return
        addresses = self._seen.setdefault(service, {})
        if not _is_address(address) or (address not in addresses and len(addresses) >= _MAX_ADDRESSES):
            address = OTHERS
        seen = addresses.setdefault(address, Seen(0, now))
        seen.count, seen.last = seen.count + 1, now

    def rows(self) -> Iterator[tuple[str, str, Seen]]:
        """Service, address and what was seen, those who called last first."""
        found = [(service, address, seen) for service, of in self._seen.items() for address, seen in of.items()]
        yield from sorted(found, key=lambda row: row[2].last, reverse=True)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
