"""Processes as the kernel knows them: when they started, whether they live, and signals that can't hit a successor."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress

# In the environment of everything that an `up` starts, and so of all that these start: the state directory.
MARK = "MESHWARDEN_UP"
# Field 22 of /proc/PID/stat, counted from the one after the command's name. Source: proc_pid_stat(5).
_START_TIME = 19
_STATE = 0


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or a zombie."""
    fields = _stat(pid)
    return None if not fields or fields[_STATE] in (b"Z", b"X") else int(fields[_START_TIME])


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    fields = _stat(pid)
    return bool(fields) and fields[_STATE] in (b"T", b"t")


def send(pid: int, started: int, number: signal.Signals) -> bool:
    """Sends a signal to the process that started then; False if it is gone, whoever has its number now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(pid) != started:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        return True
    finally:
        os.close(descriptor)


def wait_gone(pid: int, started: int, timeout_s: float) -> bool:
    """Waits until the process that started then is gone; False if it is still there after the time.

    Gone is one whose threads have all ended, and so let go of its files and ports; its parent need not have reaped it.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Not `start_time`: the first thread of a process is a zombie before the others have ended.
        fields = _stat(pid)
        if not fields or int(fields[_START_TIME]) != started:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


def marked(mark: str) -> Iterator[tuple[int, int]]:
    """Finds this user's processes that carry the mark in their environment: (pid, start time)."""
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                found = wanted in file.read().split(b"\0")
        except OSError:  # gone, or another's
            continue
        started = start_time(int(name)) if found else None
        if started is not None:
            yield int(name), started


def sweep(mark: str) -> int:
    """Kills what carries the mark, and waits until it is gone; returns how many there were.

    What these start while they die carries the mark too, hence the rounds.
    """
    killed: set[tuple[int, int]] = set()
    for _ in range(5):
        alive = [process for process in marked(mark) if process[0] != os.getpid()]
        if not alive:
            break
        for pid, started in alive:
            send(pid, started, signal.SIGKILL)
            killed.add((pid, started))
        for pid, started in alive:
            wait_gone(pid, started, 2.0)
    return len(killed)


def _stat(pid: int) -> list[bytes]:
    """What /proc/PID/stat says after the command's name; nothing if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may hold anything, also spaces and parentheses.
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
