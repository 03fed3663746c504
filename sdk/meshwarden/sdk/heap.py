"""The memory of a process that runs for long: what Python's collector looks at, what the system gets back."""

import ctypes
import gc
from typing import Final

_YOUNG: Final = 10_000
_M_TRIM_THRESHOLD: Final = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 128 << 10
_TOP_BYTES: Final = 2 << 20


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


def return_large_blocks() -> None:
    """Has the system get back each block of 128 KiB or more when it is freed.

    glibc begins so, and raises the bound up to 32 MiB to the largest block that it has seen freed. Then messages of
    megabytes lie among what stays, and what a fleet was told once is resident for good.

    Source: mallopt(3), M_MMAP_THRESHOLD. Does nothing where the C library has no such thing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TOP_BYTES)
