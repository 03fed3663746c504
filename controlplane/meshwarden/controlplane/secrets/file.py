"""Secrets in files: `file:/run/credentials/…`, one secret a file; a newline at its end isn't part of it."""

import asyncio
import os
from pathlib import Path

from pydantic import SecretStr

from meshwarden.controlplane.secrets.port import MAX_SIZE_BYTES, SecretEngine, SecretError


class FileSecrets(SecretEngine):
    """Reads files that nobody else may."""

    async def read(self, name: str) -> SecretStr:
        """Returns the content of a file."""
        return await asyncio.to_thread(_read, name)


def _read(name: str) -> SecretStr:
    try:
        # Non-blocking: opening a pipe must not wait for who writes it.
        fd = os.open(Path(name).expanduser(), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if os.fstat(fd).st_mode & 0o007:
                raise SecretError(f"file:{name}: is open to every user; chmod 600 it, and replace the secret")
            content = file.read(MAX_SIZE_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise SecretError(f"file:{name}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_SIZE_BYTES:
        raise SecretError(f"file:{name}: is larger than {MAX_SIZE_BYTES} bytes")
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        # Without its cause: that one carries the content.
        raise SecretError(f"file:{name}: is not text in UTF-8") from None
    if not text:
        raise SecretError(f"file:{name}: is empty")
    return SecretStr(text)
