"""Tokens for programs that can't send over a Unix socket: one for each workload, which ends with it.

A token is made from a key of the agent's and from what names the registered process for good, so that nothing needs to
be kept and an agent that starts again knows the tokens of programs that still run. It is never logged.
"""

import hashlib
import hmac
from typing import Final

from meshwarden.agents.cache import Cache
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload

_ITEM: Final = "otlp-token-key"
_KEY_BYTES: Final = 32
_MAX_TOKEN: Final = 256
_SCHEME: Final = "bearer "


class Tokens:
    """Makes tokens, and tells whose one is."""

    def __init__(self, key: bytes, registry: Registry) -> None:
        """Works with a key that is nobody else's."""
        self._key, self._registry = key, registry

    @classmethod
    def load(cls, cache: Cache, registry: Registry, new_key: bytes) -> "Tokens":
        """Goes on with the key that the cache holds, or with a new one."""
        key = cache.load(_ITEM)
        if key is None or len(key) != _KEY_BYTES:
            key = new_key
            cache.keep(_ITEM, key)
        return cls(key, registry)

    def of(self, workload: Workload) -> str:
        """A workload's token."""
        return f"{workload.directory.name}.{self._mac(workload)}"

    def find(self, authorization: str) -> Workload | None:
        """The workload whose token an `authorization` header shows; None if it is nobody's."""
        if authorization[: len(_SCHEME)].lower() != _SCHEME or len(authorization) > _MAX_TOKEN:
            return None
        name, _, shown = authorization[len(_SCHEME) :].strip().partition(".")
        for workload in self._registry.workloads.values():
            if workload.directory.name == name:
                is_its = hmac.compare_digest(self._mac(workload).encode(), shown.encode())
                return workload if is_its and self._registry.is_admitted(workload.id) else None
        return None

    def _mac(self, workload: Workload) -> str:
        about = f"otlp\0{workload.id}\0{workload.pid}\0{workload.start_time}"
        return hmac.new(self._key, about.encode(), hashlib.sha256).hexdigest()
