"""Publishes credentials as files that change together: one rename swaps all of them.

    <directory>/tls.crt -> ..data/tls.crt
    <directory>/..data  -> ..<random>          the one link that a publication moves
    <directory>/..<random>/tls.crt             the generation itself

A reader who opens `..data` once and reads there never mixes a key and a certificate of two generations. One who opens
file by file, as gRPC does, looks at their times before and after, by the second: so those of two generations differ by
seconds.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_DATA: Final = "..data"
_MOST_AHEAD_S: Final = 3600


def publish(directory: Path, files: Mapping[str, bytes], uid: int = -1, gid: int = -1) -> None:
    """Replaces the published files of a directory, all at once; files are 0600, and only their owner can reach them.

    Args:
        directory: is made if it isn't there; nobody else publishes into it. It is the caller's.
        files: contents by plain file name; names of earlier publications that aren't among them vanish.
        uid: the files' owner; -1 is the caller.
        gid: the files' group; -1 is the caller's.

    Raises:
        ValueError: a name isn't a plain file name.
        OSError: the file system refuses; what was published before still stands.
    """
    for name in files:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is not a plain file name")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The directory stays ours: in one of theirs they could put a link where we are about to write or to give away.
    # Others may pass through, and a generation is its owner's alone.
    os.chown(directory, os.geteuid(), os.getegid(), follow_symlinks=False)
    os.chmod(directory, 0o700 if uid in (-1, os.geteuid()) else 0o711)
    generation = directory / f"..{secrets.token_hex(8)}"
    generation.mkdir(mode=0o700)
    before_s = max((_written_s(directory / _DATA / name) for name in files), default=0)
    try:
        for name, content in files.items():
            _write(generation / name, content, uid, gid, before_s)
        _sync(generation)
        os.chown(generation, uid, gid)
        _link(directory / _DATA, generation.name)
    except BaseException:
        remove(generation)
        raise
    for name in files:
        if not (directory / name).is_symlink():
            _link(directory / name, f"{_DATA}/{name}")
    _sync(directory)
    _sweep(directory, generation.name, set(files))


def read(directory: Path, *names: str) -> tuple[bytes, ...]:
    """Reads files of one generation.

    Raises:
        FileNotFoundError: nothing of that name is published.
    """
    # A swap between two opens would mix generations, and the old one may be swept away between resolving and opening.
    for _ in range(16):
        target = os.readlink(directory / _DATA)  # not realpath, whose steps a swap can come between
        try:
            return tuple((directory / target / name).read_bytes() for name in names)
        except FileNotFoundError:
            if os.readlink(directory / _DATA) == target:
                raise
    raise FileNotFoundError(f"{directory}: is published faster than it can be read")


def remove(directory: Path) -> None:
    """Removes a directory with all that its user has put there; what cannot be removed stays."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    except RecursionError:  # directories in directories, a thousand deep, which somebody meant for us
        subprocess.run(["rm", "-rf", "--", str(directory)], stderr=subprocess.DEVNULL, check=False)


def _written_s(path: Path) -> int:
    """When a file was written last, in whole seconds since 1970; 0 if it is not there."""
    try:
        return int(path.stat(follow_symlinks=False).st_mtime)
    except OSError:
        return 0


def _write(path: Path, content: bytes, uid: int, gid: int, before_s: int) -> None:
    """Writes a file, whose time is past that of the generation before."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchown(fd, uid, gid)
        file.write(content)
        file.flush()
        now_s = int(os.fstat(fd).st_mtime)
        if now_s <= before_s < now_s + _MOST_AHEAD_S:  # its user may have given it any time
            os.utime(fd, (before_s + 1, before_s + 1))
        os.fsync(fd)


def _link(path: Path, target: str) -> None:
    temporary = path.with_name(f"..{secrets.token_hex(8)}.link")
    os.symlink(target, temporary)
    os.replace(temporary, path)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sweep(directory: Path, generation: str, names: set[str]) -> None:
    """Removes earlier generations, what a crash left, and links to files that are published no more."""
    for entry in directory.iterdir():
        if entry.name in (_DATA, generation):
            continue
        if entry.name.startswith(".."):
            if entry.is_dir() and not entry.is_symlink():
                remove(entry)
            else:
                entry.unlink(missing_ok=True)
        elif entry.is_symlink() and entry.name not in names and os.readlink(entry).startswith(f"{_DATA}/"):
            entry.unlink(missing_ok=True)
