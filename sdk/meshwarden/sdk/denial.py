"""Says in the log that a call was denied and how to find out why, without filling it."""

import logging
import threading
import time
from typing import Final

from meshwarden.sdk.red.exemplar import TraceIds

SAY_AGAIN_S: Final = 60.0
_MAX_SAID: Final = 1024
_log = logging.getLogger("meshwarden.sdk")


class Denials:
    """What a process has said of denied calls. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[tuple[str, str], float] = {}

    def say(self, caller: str, name: str, destination: str, method: str, trace: TraceIds | None = None) -> None:
        """Warns of a denied call, once a minute for each callee and method.

        Args:
            caller: "<tenant>/<service>".
            name: what was dialled.
            destination: "<tenant>/<service>"; empty where nobody has said what the name stands for.
            method: "/package.Service/Method".
            trace: where the call is recorded.
        """
        callee = destination or name
        now = time.monotonic()
        with self._lock:
            if now - self._said.get((callee, method), -SAY_AGAIN_S) < SAY_AGAIN_S:
                return
            if len(self._said) >= _MAX_SAID:
                self._said.clear()
            self._said[callee, method] = now
        _log.warning(
            "%s may not call %s of %s; why: meshwarden explain --from %s --to %s --method %s%s",
            caller,
            method,
            callee,
            caller,
            destination or f"TENANT/{name}",
            method,
            f" (trace {trace[0].hex()})" if trace is not None else "",
        )
