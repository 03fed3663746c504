"""File descriptors: how many this process may have open."""

import resource
from typing import Final

_MOST: Final = 65_536


def allow_descriptors() -> None:
    """Raises the soft limit, as far as the hard one lets us: of a front's connections each costs up to four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections(each: int) -> int:
    """How many connections the descriptors are enough for that cost so many each, an eighth being left for all else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (_MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)) * 7 // 8 // each
