"""How far the control plane has taken a chain, and where the batch under way ends: on disk, beside the chain.

    MWcursr1  run_id(16)  generation(8)  committed(8)  pending(8)  crc32(4)

There are two slots, written in turn: a write that is torn leaves the other. All integers are little-endian.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Final

import structlog

from meshwarden.agents.telemetry.segment import write_all

_log = structlog.get_logger()
_SLOT: Final = struct.Struct("<8s16sQQQI")
_MAGIC: Final = b"MWcursr1"
_AT: Final = (0, 512)


class Cursor:
    """The cursor of a chain.

    Attributes:
        run_id: of the chain.
        committed: the number up to which the control plane has all.
        pending: that of the last record of the batch under way; `committed` if there is none.
    """

    def __init__(self, path: Path, tenant: str, run_id: bytes) -> None:
        """Takes up what an earlier run has left.

        Args:
            path: the file; made 0600 if it isn't there.
            tenant: whose chain it is, for the log.
            run_id: 16 bytes, the id of the chain if there is none on disk.

        Raises:
            OSError: the disk refuses.
        """
        self.run_id, self.committed, self.pending = run_id, 0, 0
        self._tenant, self._generation = tenant, 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        content = os.pread(self._file, 1024, 0)
        for at in _AT:
            slot = content[at : at + _SLOT.size]
            if len(slot) < _SLOT.size or zlib.crc32(slot[:-4]) != struct.unpack("<I", slot[-4:])[0]:
                continue
            magic, known_id, generation, committed, pending, _ = _SLOT.unpack(slot)
            if magic == _MAGIC and generation > self._generation:
                self.run_id, self._generation = known_id, generation
                self.committed, self.pending = committed, pending

    @property
    def is_new(self) -> bool:
        """Whether there was none on disk and none was written yet."""
        return self._generation == 0

    def save(self, *, durable: bool = False) -> None:
        """Writes it down, if the disk takes it; `durable` so that it outlives a loss of power too."""
        self._generation += 1
        body = _SLOT.pack(_MAGIC, self.run_id, self._generation, self.committed, self.pending, 0)[:-4]
        try:
            write_all(self._file, body + struct.pack("<I", zlib.crc32(body)), _AT[self._generation % 2])
            if durable:
                os.fsync(self._file)
        except OSError as error:
            # What it holds is known to the control plane too: it will tell, and nothing counts twice.
            _log.error("spool cursor not written", tenant=self._tenant, reason=str(error))

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)
