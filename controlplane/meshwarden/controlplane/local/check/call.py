"""Calls that probes make, and what is expected of them."""

import contextlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshwarden.controlplane.local.check.mesh import until
from meshwarden.controlplane.local.check.probe import Probe
from meshwarden.controlplane.local.check.result import require

ORDERS = {"target": "xds:///orders", "method": "Get"}
BILLING = {"host": "billing.platform", "path": "/invoices/1"}
EFFECT_S = 10.0
# The states of /proc/<pid>/net/tcp.
ESTABLISHED, LISTEN = "01", "0A"


@dataclass(frozen=True)
class Probes:
    """Probes with the identities of the samples' clients."""

    acme: Probe
    globex: Probe
    intruder: Probe


async def grpc_calls(probe: Probe, count: int, **more: Any) -> dict[str, Any]:
    """Calls orders over proxyless gRPC."""
    return await probe.ask("grpc", **{**ORDERS, "count": count, **more})


async def http_calls(probe: Probe, count: int, **more: Any) -> dict[str, Any]:
    """Calls billing through the probe's Envoy."""
    return await probe.ask("http", **{**BILLING, "count": count, **more})


def only(answer: dict[str, Any], code: str, what: str) -> int:
    """Returns how many calls there were, all of which must have ended with `code`."""
    codes: dict[str, int] = answer["codes"]
    require(set(codes) == {code}, f"{what}: expected {code} alone, got {codes}; {answer.get('errors', [])[:2]}")
    return codes[code]


async def becomes(probe: Probe, op: str, code: str, what: str, **call: Any) -> int:
    """Calls once in a while until the code is `code`; returns how many calls that took."""
    calls = 0

    async def look() -> int | None:
        nonlocal calls
        calls += 1
        answer = await probe.ask(op, **call, count=1)
        return calls if set(answer["codes"]) == {code} else None

    return await until(look, EFFECT_S, f"{what} does not become {code}")


def sockets(pid: int) -> set[tuple[str, str]]:
    """The established TCP connections of a process: {(local address, remote address)}, as /proc writes them."""
    return {(local, remote) for local, remote, state in _table(pid) if state == ESTABLISHED}


def listening(pid: int) -> list[tuple[str, int]]:
    """Where a process listens: [(IP address, port)]."""
    found = [local.rpartition(":") for local, _, state in _table(pid) if state == LISTEN]
    return [(_address(host), int(port, 16)) for host, _, port in found]


def _address(digits: str) -> str:
    """An address as /proc writes it: 32-bit words in the machine's order."""
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    # gRPC opens IPv6 sockets for IPv4 addresses too.
    return str(getattr(address, "ipv4_mapped", None) or address)


def _table(pid: int) -> list[tuple[str, str, str]]:
    """The TCP sockets of a process: [(local address, remote address, state)].

    Source: proc(5), /proc/<pid>/net/tcp and tcp6.
    """
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(entry.path))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return [(row[1], row[2], row[3]) for row in rows if f"socket:[{row[9]}]" in inodes]
