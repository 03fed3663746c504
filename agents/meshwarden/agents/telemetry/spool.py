"""Where reports wait for the control plane: on disk, one chain a tenant, bounded.

    <state_dir>/spool/acme/  cursor  00000000004294967296.seg  …      0700, files 0600

Whoever hands something in is told that it is taken once it would outlive this process. At the bounds, and where the
disk is full, the tenant that has most loses its oldest; each drop is accounted for in the same place.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import structlog

from meshwarden.agents.telemetry import account
from meshwarden.agents.telemetry.account import Drops
from meshwarden.agents.telemetry.chain import Chain
from meshwarden.agents.telemetry.segment import Items

_log = structlog.get_logger()
_OWN: Final = "_node"  # no tenant's name has an underscore
_TRIES: Final = 4


class SpoolFull(Exception):
    """The disk refuses, and there is nothing left that could make room."""


@dataclass(frozen=True)
class SpoolLimits:
    """What a spool may take on disk.

    Attributes:
        total_bytes: all of it, about.
        tenant_bytes: one tenant's chain.
        segment_bytes: one file of a chain; the oldest goes a file at a time.
    """

    total_bytes: int = 256 << 20
    tenant_bytes: int = 64 << 20
    segment_bytes: int = 1 << 20


class Spool:
    """All chains. Not safe to share between threads or processes."""

    def __init__(self, directory: Path, new_id: Callable[[], bytes], limits: SpoolLimits | None = None) -> None:
        """Takes up what an earlier run has left.

        Args:
            directory: of ours alone; made 0700 if it isn't there.
            new_id: makes the 16 bytes that name a new chain.
            limits: the defaults if None.

        Raises:
            OSError: the disk refuses.
        """
        self._directory, self.new_id, self._limits = directory, new_id, limits or SpoolLimits()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._chains: dict[str, Chain] = {}
        self._owed: dict[str, Drops] = {}
        self.refusal = ""
        """Why the disk took nothing at the last try; empty if it did."""
        for path in sorted(directory.iterdir()):
            if path.is_dir():
                try:
                    self._chain("" if path.name == _OWN else unquote(path.name))
                except OSError as error:  # tried again when something comes for it
                    _log.error("spool not taken up", directory=str(path), reason=str(error))

    @property
    def chains(self) -> Mapping[str, Chain]:
        """The chains: `{tenant: chain}`; the empty tenant's is the node's own."""
        return self._chains

    @property
    def tenant_bytes(self) -> int:
        """What one tenant's chain may take before the oldest is dropped."""
        return self._limits.tenant_bytes

    def sizes(self) -> dict[str, int]:
        """What each tenant's chain takes on disk: `{tenant: bytes}`."""
        return {tenant: chain.size_bytes for tenant, chain in self._chains.items()}

    def put(self, tenant: str, payload: bytes, items: Items, *, entries: int = 1, drops: Drops | None = None) -> None:
        """Takes telemetry of a tenant; once this returns it outlives the process.

        Args:
            tenant: whose it is; empty for the node's own.
            payload: part of a serialised `ExportRequest`.
            items: what of each signal is in it.
            entries: how many entries of repeated fields are in it.
            drops: accounts that belong to it.

        Raises:
            SpoolFull: it is not taken, and neither are its accounts.
        """
        owed = self._owed.get(tenant, Drops())
        ledger = account.encode(owed + (drops or Drops())) if owed or drops else b""
        self._append(tenant, ledger, payload, entries, items)
        self._owed.pop(tenant, None)
        self._keep_to_limits(tenant)

    def drop(self, drops: Drops) -> None:
        """Takes accounts of what was dropped before it came here. Where the disk refuses they wait in memory."""
        for tenant in {key[3] for key in drops}:
            mine = Drops({key: count for key, count in drops.items() if key[3] == tenant})
            try:
                self.put(tenant, b"", Items(), entries=0, drops=mine)
            except SpoolFull:
                self.owe(mine)

    def owe(self, drops: Drops) -> None:
        """Takes accounts of what is dropped faster than one could write; they are in memory until `settle`."""
        for key, count in drops.items():
            owed = self._owed.setdefault(key[3], Drops())
            owed[key] += count

    def settle(self) -> None:
        """Writes the accounts that are in memory; not while the disk takes nothing, where they would cost telemetry."""
        for tenant in () if self.refusal else list(self._owed):
            with contextlib.suppress(SpoolFull):
                self.put(tenant, b"", Items(), entries=0)

    def close(self) -> None:
        """Lets go of the files."""
        for chain in self._chains.values():
            chain.close()
        self._chains.clear()

    def _chain(self, tenant: str) -> Chain:
        chain = self._chains.get(tenant)
        if chain is None:
            directory = self._directory / (quote(tenant, safe="") or _OWN)
            chain = self._chains[tenant] = Chain(directory, tenant, self.new_id(), self._limits.segment_bytes)
        return chain

    def _append(self, tenant: str, ledger: bytes, payload: bytes, entries: int, items: Items) -> None:
        for attempt in range(_TRIES):
            try:
                self._chain(tenant).append(ledger, payload, entries, items)
            except OSError as error:
                reason = str(error)
                if not self.refusal:
                    _log.error("spool not written: making room", tenant=tenant, reason=reason)
                self.refusal = reason
                if attempt == _TRIES - 1 or not self._bury("disk_full"):
                    raise SpoolFull(reason) from None
            else:
                self.refusal = ""
                return

    def _keep_to_limits(self, tenant: str) -> None:
        chain = self._chains[tenant]
        with contextlib.suppress(OSError):
            while chain.size_bytes > self._limits.tenant_bytes and chain.bury("queue_full"):
                pass
        while sum(self.sizes().values()) > self._limits.total_bytes and self._bury("queue_full"):
            pass

    def _bury(self, reason: str) -> bool:
        """Drops the oldest of whoever has most; whether anything could be dropped."""
        for chain in self._greediest():
            with contextlib.suppress(OSError):
                if chain.bury(reason):
                    return True
        return False

    def _greediest(self) -> Iterator[Chain]:
        yield from sorted(self._chains.values(), key=lambda chain: -chain.size_bytes)
