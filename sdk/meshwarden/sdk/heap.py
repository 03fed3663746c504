"""What Python's collector of cycles is to look at in a process that runs for long."""

import gc
from typing import Final

_YOUNG: Final = 10_000


def settle() -> None:
    """Leaves to themselves all objects that there are, once a process has started: most will live as long as it does.

    A server's modules, classes and schemas are some eighty thousand objects: the collector takes 60 ms to go through
    them, in which nothing is answered, and finds nothing. What comes later is collected as ever. It is looked at
    first when there is so much of it that a batch of telemetry, or a push, is over by then: with the 700 of Python's
    own each of them lives long enough to be looked at three times. That many objects take a few megabytes at most.

    For whole processes alone: what was garbage of somebody else's making when it was called would stay.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
