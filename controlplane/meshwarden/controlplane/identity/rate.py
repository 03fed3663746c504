"""How much of identity each may ask for: token buckets of a bounded number of callers. Pure."""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

CAPACITY = 100_000


@dataclass(frozen=True)
class Pace:
    """So many at once, and so many a second."""

    per_s: float
    burst: int


@dataclass(frozen=True)
class Limits:
    """What each may ask for.

    Attributes:
        attests_of_address: requests to attest from one address; of IPv6, from one network of 64 bits.
        certificates_of_node: certificates of one node's own, attested or renewed.
        signs_of_node: workload certificates that one node asks for; it renews each twice an hour, and a restart asks
            for all of them at once.
        signs_of_tenant: workload certificates of one tenant, on whatever nodes.
    """

    attests_of_address: Pace = Pace(10.0, 100)
    certificates_of_node: Pace = Pace(0.2, 20)
    signs_of_node: Pace = Pace(50.0, 2_000)
    signs_of_tenant: Pace = Pace(500.0, 20_000)


class Limited(Exception):
    """Somebody asks for too much; `wait_s` is in how many seconds there is one more for `who`, at `pace`."""

    def __init__(self, who: str, what: str, pace: Pace, wait_s: float) -> None:
        super().__init__(f"{who} asks for more than {pace.per_s:g} {what} a second; try again in {wait_s:.2f} s")
        self.who, self.pace, self.wait_s = who, pace, wait_s


class Rate:
    """Allows each caller its pace."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        # {caller: (tokens, when)}, the longest unheard first
        self._buckets: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, caller: str, now: datetime) -> float:
        """Takes one; returns 0, or in how many seconds there will be one."""
        burst, per_s = float(self.pace.burst), self.pace.per_s
        tokens, since = self._buckets.pop(caller, (burst, now))
        # A clock that was set back takes nothing away.
        elapsed_s = max(0.0, (now - since).total_seconds())
        tokens = min(burst, tokens + elapsed_s * per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / per_s
        self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._buckets) > CAPACITY:
            self._buckets.popitem(last=False)
        return wait_s


def network_of(address: str) -> str:
    """Returns whose an address is, "192.0.2.1:4711" or "[2001:db8::1]:4711": itself, or its network of 64 bits.

    Whoever has one address of IPv6 has 2⁶⁴. What is no address is itself.
    """
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((int(parsed), 64), strict=False))
