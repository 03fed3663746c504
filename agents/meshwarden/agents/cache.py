"""What the agent keeps on disk, so that it starts and serves while the control plane is away.

Each item is a file of its own in a directory that is ours alone: one header line that names format, item and key, then
the item's bytes, encrypted and bound to that header (`seal`). Whatever cannot be read, was changed, or was written by a
newer agent, is set aside under another name and logged: a cache is never a reason not to start, and never believed.

    meshwarden-agent-cache 2 entries 0123456789abcdef
    <bytes>

Secrets (workload keys) are among the items: files are 0600, and never leave the node.

Agents before this format wrote in the clear. What they have left is taken over when a key is made beside the cache for
the first time. It is not where a key is given: there, whoever can write to the disk shall not be able to put it there.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from meshwarden.certs.seal import KeyFile, Seal, Unsealed

_log = structlog.get_logger()
FORMAT: Final = 2
_CLEAR_FORMAT: Final = 1
_MAGIC: Final = b"meshwarden-agent-cache"
_MAX_HEADER_BYTES: Final = 512
_MAX_ITEM_BYTES: Final = (256 << 20) + 64
_ASIDE: Final = ".aside"
_DRAFTS: Final = ".*"


class _Unreadable(Exception):
    """A file of the cache cannot be used."""


class _Clear(_Unreadable):
    """It was written in the clear, where that is not taken."""


class Cache:
    """Named items on disk; each is replaced as a whole and survives a crash in its old or its new form."""

    def __init__(self, directory: Path, secret: bytes | None = None) -> None:
        """Takes `directory`, which is made 0700 if it isn't there.

        Args:
            directory: the cache's own.
            secret: what its key is made of; left out, that lies beside the directory, and is made if it isn't there.
        """
        self._directory = directory
        self._unsaved: dict[str, bytes] = {}
        self.refusal = ""
        """Why the disk takes not all there is to keep; empty if it does."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for draft in directory.glob(_DRAFTS):  # what a crash has left
            with contextlib.suppress(OSError):
                draft.unlink()
        self._takes_clear = False
        if secret is not None:
            self._seal = Seal(secret)
            return
        key_file = KeyFile(directory.with_name(f"{directory.name}-key"))
        self._seal = Seal(key_file.secret)
        if key_file.is_new:
            self._take_over(key_file)

    def _take_over(self, key_file: KeyFile) -> None:
        """Encrypts what an earlier agent has left in the clear, and then keeps the key."""
        self._takes_clear = True
        try:
            for name in self.names(""):
                body = self.load(name)
                if body is not None:
                    self.save(name, body)
            for path in self._directory.glob(f"*{_ASIDE}"):  # keys are among what was set aside, too
                path.unlink()
            key_file.settle()
        except OSError as error:  # the next start goes on with it
            _log.error("cache not encrypted", reason=str(error))
            self.refusal = str(error)
        else:
            self._takes_clear = False

    def load(self, name: str) -> bytes | None:
        """An item; None if there is none that can be used."""
        path = self._directory / name
        try:
            return self._read(path, name)
        except FileNotFoundError:
            return None
        except _Clear as error:
            _log.warning("cache item removed", item=name, reason=str(error))
            self.remove(name)  # it may be a key: it is not kept for anybody to look into
            return None
        except (OSError, _Unreadable) as error:
            self.set_aside(name, str(error))
            return None

    def save(self, name: str, body: bytes) -> None:
        """Replaces an item.

        Raises:
            OSError: if the disk refuses; the old item still stands.
        """
        header = b"%s %d %s %s\n" % (_MAGIC, FORMAT, name.encode(), self._seal.id.encode())
        draft = self._directory / f".{name[:64]}.{secrets.token_hex(6)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                file.write(self._seal.close(body, header))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._directory / name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def keep(self, name: str, body: bytes) -> None:
        """Replaces an item, if need be when the disk takes it again: see `save_rest`."""
        try:
            self.save(name, body)
        except OSError as error:
            if name not in self._unsaved:
                _log.error("not cached", item=name, reason=str(error))
            self._unsaved[name] = body
            self.refusal = str(error)
        else:
            self._unsaved.pop(name, None)
            if not self._unsaved:
                self.refusal = ""

    def save_rest(self) -> None:
        """Tries again to save what the disk has refused."""
        for name, body in list(self._unsaved.items()):
            self.keep(name, body)

    def remove(self, name: str) -> None:
        """Removes an item, if it is there."""
        self._unsaved.pop(name, None)
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            _log.error("not removed", item=name, reason=str(error))

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the items that start with `prefix`."""
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith(prefix) and path.suffix != _ASIDE:
                yield path.name

    def set_aside(self, name: str, reason: str) -> None:
        """Keeps an item that cannot be used for whoever looks into it, out of our way."""
        path = self._directory / name
        _log.warning("cache item set aside", item=name, reason=reason, kept_as=name + _ASIDE)
        try:
            os.replace(path, path.with_name(name + _ASIDE))
        except OSError as error:
            _log.warning("cache item not moved", item=name, reason=str(error))

    def _read(self, path: Path, name: str) -> bytes:
        with open(path, "rb") as file:
            header = file.readline(_MAX_HEADER_BYTES)
            body = file.read(_MAX_ITEM_BYTES + 1)
        words = header.split()
        if len(words) != 4 or words[0] != _MAGIC or not words[1].isdigit() or not header.endswith(b"\n"):
            raise _Unreadable("no header of ours")
        if words[2] != name.encode() or len(body) > _MAX_ITEM_BYTES:
            raise _Unreadable("another item, or too large")
        if int(words[1]) == _CLEAR_FORMAT:
            return self._read_clear(words[3], body)
        if int(words[1]) != FORMAT:
            raise _Unreadable(f"format {int(words[1])}; this agent reads {FORMAT}")
        if words[3] != self._seal.id.encode():
            raise _Unreadable("it was written under another key")
        try:
            return self._seal.open(body, header)
        except Unsealed as error:
            raise _Unreadable(str(error)) from None

    def _read_clear(self, digest: bytes, body: bytes) -> bytes:
        if not self._takes_clear:
            raise _Clear("it was written in the clear, by an agent before this one or by somebody else")
        if digest != hashlib.sha256(body).hexdigest().encode():
            raise _Unreadable("its digest is wrong: it was cut short or changed")
        return body
