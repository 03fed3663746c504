"""How a program's main thread is told to stop: SIGTERM and SIGINT."""

import queue
import signal


class Stop:
    """Notes SIGTERM and SIGINT from when it is made, which has to be in the main thread.

    A `threading.Event` won't do: a handler runs in the main thread, between any two of its steps, and for ever where it
    sets an event whose lock the very same thread holds, about to wait. A SimpleQueue may be put to from a handler.
    """

    def __init__(self) -> None:
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._signals.put(number))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until the program is to stop, or for so long; says whether it is to stop, which is told once."""
        try:
            self._signals.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True
