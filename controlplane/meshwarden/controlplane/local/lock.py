"""A state directory is held by one process at a time, and is known as one by its lock."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.plan import Plan

# The store, the logs and the caches of a mesh that is tried out.
FREE_BYTES = 32 << 20


class Held(LocalError):
    """Another process holds the state directory."""


@contextmanager
def alone(plan: Plan) -> Iterator[None]:
    """Holds the state directory for this process; makes the lock if it is not there.

    Raises:
        Held: another process has it.
    """
    descriptor = os.open(plan.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(
                f"{plan.state_dir}: a mesh runs on this state directory already",
                "stop it: meshwarden down; or start one beside it: meshwarden up --state-dir DIR",
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_ours(plan: Plan) -> bool:
    """Whether a mesh has ever run on the directory: in all others nothing is ours to change."""
    return plan.lock.is_file()


def make_ours(plan: Plan) -> None:
    """Makes the directory, or takes one that is empty.

    Raises:
        LocalError: it can't be made, something else lies in it, or its disk is full.
    """
    try:
        plan.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_strange = not is_ours(plan) and any(plan.state_dir.iterdir())
        free_bytes = shutil.disk_usage(plan.state_dir).free
    except OSError as error:
        raise LocalError(
            f"{error.filename}: {error.strerror}", "name a directory of yours: meshwarden up --state-dir DIR"
        ) from None
    if is_strange:
        raise LocalError(
            f"{plan.state_dir}: holds something else, and no mesh",
            "name an empty directory or a new one: meshwarden up --state-dir DIR",
        )
    if free_bytes < FREE_BYTES:
        raise LocalError(
            f"{plan.state_dir}: {free_bytes >> 20} MiB are free on its disk; a mesh wants {FREE_BYTES >> 20}",
            "make room, or keep the mesh elsewhere: meshwarden up --state-dir DIR",
        )
