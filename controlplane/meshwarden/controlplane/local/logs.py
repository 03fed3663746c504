"""Reads logs of a mesh: JSON lines of ours, text of programs, each with its time where it tells one."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

# As `logging` writes it, in local time. Source: logging.Formatter.default_time_format.
_ASCTIME: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[,.](\d{3})")
_CHUNK_BYTES: Final = 1 << 20
_MAX_LINE_BYTES: Final = 64 << 10
_KEPT: Final = 100_000


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        time_s: when it was written, in seconds since the epoch.
        source: the name of its log.
        text: without its end.
    """

    time_s: float
    source: str
    text: str


class Tail:
    """One log from its beginning on, as it grows; with a trace id, only what carries it."""

    def __init__(self, path: Path, trace: str | None = None) -> None:
        """Opens the log.

        Raises:
            OSError: it can't be read.
        """
        self.name = path.stem
        self._file = open(path, "rb")  # noqa: SIM115 - for as long as the process
        self._trace = trace.encode() if trace is not None else None
        self._time_s = 0.0
        self._rest = b""
        self._is_within = False

    def read(self) -> list[Line]:
        """The lines that were written since the last time; half a line waits for its end."""
        found: list[Line] = []
        while chunk := self._file.read(_CHUNK_BYTES):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _MAX_LINE_BYTES:
                whole, self._rest = [*whole, self._rest], b""
            found.extend(line for text in whole if (line := self._line(text)) is not None)
            del found[:-_KEPT]
        return found

    def close(self) -> None:
        """Closes the log."""
        self._file.close()

    def is_gone(self) -> bool:
        """Whether the file was removed."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def _line(self, raw: bytes) -> Line | None:
        text = raw[:_MAX_LINE_BYTES].decode(errors="replace")
        time_s = _time_of(text)
        if time_s is not None:
            self._time_s = time_s
            self._is_within = self._trace is None or self._trace in raw
        elif not self._time_s:
            self._is_within = self._trace is None or self._trace in raw
        # In a log that tells times, a line without one, a traceback's for one, belongs to the one before.
        return Line(self._time_s, self.name, text) if self._is_within else None


@dataclass(frozen=True)
class Running:
    """What up.json says of who runs, as far as logs are concerned.

    Attributes:
        workloads: (tenant, service, entry, instance) of each.
        regions: their names, where there are several.
    """

    workloads: tuple[tuple[str, str, str, str], ...] = ()
    regions: tuple[str, ...] = ()

    @classmethod
    def read(cls, state_dir: Path) -> "Running":
        """Reads it; nobody runs where there is none."""
        try:
            said = json.loads((state_dir / "up.json").read_text())
            regions = said.get("regions", ())
            found = [
                (str(one["tenant"]), str(one["service"]), str(one["entry"]), str(one["name"]))
                for region in regions or (said,)
                for one in region["workloads"]
            ]
            return cls(tuple(dict.fromkeys(found)), tuple(str(region["region"]) for region in regions))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()

    def instances(self, workload: str) -> list[str]:
        """The instances of a workload, "TENANT/NAME" or "NAME": of an entry or a service all are meant."""
        tenant, _, name = workload.partition("#")[0].rpartition("/")
        of_tenant = [one for one in self.workloads if tenant in ("", one[0])]
        for place in (3, 2, 1):
            if found := [one[3] for one in of_tenant if one[place] == name]:
                return found
        is_anothers = any(one[3] == name for one in self.workloads)
        return [] if is_anothers else [name]  # it runs no more

    def logs(self, name: str) -> list[str]:
        """What the logs of a process may be called."""
        return [name, *(f"{name}-{region}" for region in self.regions)]


def merged(tails: Iterable[Tail]) -> list[Line]:
    """What was written to several logs since the last time, by time."""
    return sorted((line for tail in tails for line in tail.read()), key=lambda line: line.time_s)


def _time_of(text: str) -> float | None:
    if text.startswith("{"):
        try:
            said = json.loads(text)
            return datetime.fromisoformat(said["timestamp"]).timestamp()
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    found = _ASCTIME.match(text)
    if found is None:
        return None
    try:
        return datetime.strptime(f"{found[1]}.{found[2]}", "%Y-%m-%d %H:%M:%S.%f").astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        return None
