"""A copy of what a control plane knows and can't make anew: store, roots and audit log, in one tar file.

    backup.json        format, when, from which history, which roots; the SHA-256 of each file below
    store.sqlite       a consistent copy, taken while the control plane runs
    audit.jsonl        whole lines
    ca/roots.json, ca/<SHA-256>.crt, ca/<SHA-256>.key

All of it lies under a passphrase (`secrets.seal`), if it has one. Keys of roots are in it as they are on disk:
encrypted under the passphrase of those, which isn't in it.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

import apsw

from meshwarden.certs import files
from meshwarden.certs.authority.port import Secret
from meshwarden.controlplane.secrets.seal import SealedReader, SealedWriter, SealError, is_sealed

FORMAT: Final = 1
MAX_ABOUT_BYTES: Final = 1 << 20
# Cursors of before a restore are below what it begins at, and are refused: nobody writes so much between two backups.
REVISIONS_LEFT_OUT: Final = 1_000_000_000
_ABOUT: Final = "backup.json"
_STORE: Final = "store.sqlite"
_AUDIT: Final = "audit.jsonl"
_CA: Final = re.compile(r"ca/(roots\.json|[0-9a-f]{64}\.(crt|key))")
_CHUNK: Final = 1 << 20


class BackupError(Exception):
    """A backup can't be made, or is of no use; the message says why and what to do."""


@dataclass(frozen=True)
class About:
    """What a backup holds."""

    time: datetime
    # The history that it is of, and how far.
    incarnation: str
    revision: int
    roots: int
    # Keys of roots, encrypted under the authority's passphrase.
    keys: int


Passphrase = Callable[[], Secret | None]
"""Asked for once it is needed; None leaves a backup open, and can't read one that isn't."""


def _no_passphrase() -> None:
    return None


def back_up(state_dir: Path, target: Path, now: datetime, passphrase: Passphrase = _no_passphrase) -> About:
    """Writes a backup of a control plane, which may run meanwhile; the file is 0600, and appears whole.

    Raises:
        BackupError: there is no store here, the target exists, or the passphrase is too short.
        OSError: a disk refuses.
    """
    if not (state_dir / _STORE).exists():
        raise BackupError(f"{state_dir}: no control plane's state directory: there is no {_STORE} in it")
    if target.exists():
        raise BackupError(f"{target}: exists; name another file")
    secret = passphrase()
    # What isn't sealed yet stays where it came from.
    with _draft(target.parent, target.name) as sealed, _draft(state_dir, target.name) as draft:
        # The store first: what it notes of the audit log is in the copy of that, then.
        incarnation, revision = _copy_store(state_dir / _STORE, draft / _STORE)
        _copy_audit(state_dir / _AUDIT, draft / _AUDIT)
        _copy_roots(state_dir / "ca", draft / "ca")
        names = sorted(str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file())
        about = About(
            now,
            incarnation,
            revision,
            roots=sum(name.endswith(".crt") for name in names),
            keys=sum(name.endswith(".key") for name in names),
        )
        _describe(draft, names, about)
        with _private(sealed / "whole") as out:
            _write(draft, names, out, secret)
        # Not over a file that has come meanwhile.
        os.link(sealed / "whole", target)
        _sync(target.parent)
    return about


def restore(source: Path, state_dir: Path, passphrase: Passphrase = _no_passphrase) -> About:
    """Makes a new state directory of a backup, all of it or nothing. Who has it there begins a history of its own.

    Raises:
        BackupError: the directory isn't empty, or the file is no backup, damaged, or not opened by the passphrase.
        OSError: a disk refuses.
    """
    if state_dir.exists() and any(state_dir.iterdir()):
        raise BackupError(
            f"{state_dir}: isn't empty; stop the control plane, move the directory away, and restore anew"
        )
    state_dir.parent.mkdir(parents=True, exist_ok=True)
    with _draft(state_dir.parent, state_dir.name) as draft:
        about = _read(source, draft, passphrase)
        _begin_history(draft / _STORE, source)
        roots = {path.name: path.read_bytes() for path in (draft / "ca").glob("*")}
        shutil.rmtree(draft / "ca", ignore_errors=True)
        if roots:
            files.publish(draft / "ca", roots)
        if state_dir.exists():
            state_dir.rmdir()
        _sync(draft)
        draft.rename(state_dir)
        _sync(state_dir.parent)
    return about


@contextmanager
def _draft(parent: Path, name: str) -> Iterator[Path]:
    draft = parent / f".{name}.{secrets.token_hex(4)}"
    draft.mkdir(mode=0o700)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_store(source: Path, target: Path) -> tuple[str, int]:
    """Copies a live store; returns its incarnation and revision."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with (
            closing(apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)) as live,
            closing(apsw.Connection(str(target))) as copy,
        ):
            live.set_busy_timeout(5000)
            with copy.backup("main", live, "main") as running:
                while not running.done:
                    running.step(-1)
            copy.execute("PRAGMA journal_mode = DELETE").fetchall()
            values = {str(name): value for name, value in copy.execute("SELECT name, value FROM meta")}
        return str(values["incarnation"]).partition("@")[0], int(str(values["revision"]))
    except (apsw.Error, KeyError, ValueError) as error:
        raise BackupError(f"{source}: can't be copied: {error}") from None


def _copy_audit(source: Path, target: Path) -> None:
    if not source.exists():
        return
    left = source.stat().st_size
    with _private(target) as out, source.open("rb") as live:
        while left and (chunk := live.read(min(left, _CHUNK))):
            out.write(chunk)
            left -= len(chunk)
        # A line that is being written isn't whole.
        out.flush()
        size = out.seek(0, os.SEEK_END)
        with target.open("rb") as copy:
            copy.seek(max(0, size - _CHUNK))
            tail = copy.read()
        out.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def _copy_roots(source: Path, target: Path) -> None:
    if not (source / "..data").exists():
        return
    target.mkdir(mode=0o700)
    # All of one generation, though they change meanwhile.
    names = [path.name for path in source.iterdir() if _CA.fullmatch(f"ca/{path.name}")]
    try:
        contents = files.read(source, *names)
    except OSError:
        raise BackupError(f"{source}: the roots were being changed; try again") from None
    for name, content in zip(names, contents, strict=True):
        with _private(target / name) as out:
            out.write(content)


def _describe(draft: Path, names: list[str], about: About) -> None:
    words = {
        "format": FORMAT,
        "time": about.time.isoformat(),
        "incarnation": about.incarnation,
        "revision": about.revision,
        "roots": about.roots,
        "keys": about.keys,
        "sha256": {name: _sum(draft / name) for name in names},
    }
    with _private(draft / _ABOUT) as out:
        out.write(json.dumps(words, indent=1).encode())


def _write(draft: Path, names: list[str], out: IO[bytes], secret: Secret | None) -> None:
    try:
        sealed = SealedWriter(out, secret) if secret is not None else None
    except SealError as error:
        raise BackupError(str(error)) from None
    whole: Any = sealed or out
    with tarfile.open(fileobj=whole, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in (_ABOUT, *names):
            tar.add(draft / name, name, recursive=False)
    if sealed is not None:
        sealed.finish()
    out.flush()
    os.fsync(out.fileno())


def _read(source: Path, draft: Path, passphrase: Passphrase) -> About:
    with source.open("rb") as file:
        sealed = is_sealed(file.read(_CHUNK))
        file.seek(0)
        if not sealed:
            return _read_tar(source, file, draft)
        secret = passphrase()
        if secret is None:
            raise BackupError(f"{source}: lies under a passphrase; give it with --passphrase")
        try:
            reader = SealedReader(file, secret)
            about = _read_tar(source, reader, draft)
            reader.drain()
        except SealError as error:
            raise BackupError(f"{source}: {error}") from None
    return about


def _read_tar(source: Path, file: Any, draft: Path) -> About:
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            words = _about(tar)
            _take_out(source, tar, dict(words["sha256"]), draft)
        return About(
            datetime.fromisoformat(words["time"]),
            str(words["incarnation"]),
            int(words["revision"]),
            int(words["roots"]),
            int(words["keys"]),
        )
    except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError):
        raise BackupError(f"{source}: no backup of a control plane, or damaged") from None


def _take_out(source: Path, tar: tarfile.TarFile, wanted: dict[str, Any], draft: Path) -> None:
    """Takes the files out that a backup holds, and sees that they are what it says of them."""
    for member in tar:
        if member.name == _ABOUT:
            continue
        expected = wanted.pop(member.name, None)
        known = member.name in (_STORE, _AUDIT) or _CA.fullmatch(member.name)
        content = tar.extractfile(member) if member.isreg() and known else None
        if expected is None or content is None:
            raise BackupError(f"{source}: holds {member.name[:255]!r}, which no backup does")
        (draft / member.name).parent.mkdir(mode=0o700, exist_ok=True)
        with _private(draft / member.name) as out:
            shutil.copyfileobj(content, out, _CHUNK)
            out.flush()
            os.fsync(out.fileno())
        if _sum(draft / member.name) != expected:
            raise BackupError(f"{source}: {member.name} is damaged; take another backup")
    if wanted or not (draft / _STORE).exists():
        raise BackupError(f"{source}: {next(iter(wanted), _STORE)} is missing; take another backup")


def _about(tar: tarfile.TarFile) -> dict[str, Any]:
    first = tar.next()
    content = tar.extractfile(first) if first is not None and first.name == _ABOUT and first.isreg() else None
    if content is None:
        raise ValueError("the first file isn't what it has to be")
    words: dict[str, Any] = json.loads(content.read(MAX_ABOUT_BYTES))
    if words["format"] != FORMAT:
        raise BackupError(
            f"the backup has format {words['format']!r}, and this Meshwarden knows {FORMAT}: run a newer one"
        )
    return words


def _begin_history(store: Path, source: Path) -> None:
    """Makes a copied store another one than that which it is a copy of: cursors of that one mean nothing in it."""
    try:
        with closing(apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            ((found,),) = connection.execute("PRAGMA integrity_check").fetchall()[:1]
            if found != "ok":
                raise BackupError(f"{source}: its store is damaged: {found}")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM meta WHERE name = 'incarnation'")
            connection.execute("DELETE FROM lease")
            connection.execute("UPDATE meta SET value = value + ? WHERE name = 'revision'", (REVISIONS_LEFT_OUT,))
            connection.execute(
                "UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'revision') WHERE name = 'compacted'"
            )
            connection.execute("COMMIT")
    except apsw.Error as error:
        raise BackupError(f"{source}: its store can't be used: {error}") from None


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
