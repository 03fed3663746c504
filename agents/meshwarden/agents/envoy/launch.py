"""Becomes a program that dies with its parent: `python -I launch.py PARENT UID GID PROGRAM ARGUMENT…`.

A program of its own, since prctl between fork and exec is not safe in a process with threads, and since the death
signal is cleared by a change of credentials and so must be set after it. Imports nothing of ours: it starts in 20 ms.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main(arguments: list[str]) -> None:
    """Sets the user, then the death signal, then becomes the program."""
    parent, uid, gid = (int(number) for number in arguments[:3])
    if (os.geteuid(), os.getegid()) != (uid, gid):
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_PDEATHSIG, signal.SIGKILL)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit(1)
    os.execv(arguments[3], arguments[3:])  # noqa: S606 - the agent's own argument list


if __name__ == "__main__":
    main(sys.argv[1:])
