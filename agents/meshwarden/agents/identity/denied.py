"""Whom this node refuses: the control plane's deny list, kept on the disk for as long as the control plane is away."""

from collections.abc import Callable
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from meshwarden.agents.cache import Cache
from meshwarden.certs.deny import DenyList, InvalidDeny
from meshwarden.v1 import node_service_pb2 as node_pb

_ITEM: Final = "denied"
_log = structlog.get_logger()


class DenyKeeper:
    """The list in force; programs are told of each change."""

    def __init__(self, cache: Cache) -> None:
        """Starts from what the cache holds."""
        self._cache = cache
        self._listeners: list[Callable[[], None]] = []
        self.changes = 0
        """How many other lists than the one before have come since the agent started."""
        self.message = self._load()
        """The list, for programs."""
        self._present = self.message, DenyList.from_proto(self.message)

    @property
    def present(self) -> DenyList:
        """The list."""
        if self._present[0] is not self.message:
            self._present = self.message, DenyList.from_proto(self.message)
        return self._present[1]

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    def take(self, message: node_pb.DenyList) -> int | None:
        """Takes a list; returns its revision, or None if it can't be read: then the one that was there stands."""
        try:
            DenyList.from_proto(message)
        except InvalidDeny as error:
            _log.error("deny list refused", reason=str(error))
            return None
        if message != self.message:
            before, self.message = self.message, message
            self._cache.keep(_ITEM, message.SerializeToString())
            if list(before.denies) != list(message.denies):
                self.changes += 1
                _log.info("deny list", revision=message.revision, denies=len(message.denies))
            for callback in self._listeners:
                callback()
        return message.revision

    def _load(self) -> node_pb.DenyList:
        body = self._cache.load(_ITEM)
        if body is None:
            return node_pb.DenyList()
        try:
            message = node_pb.DenyList.FromString(body)
            DenyList.from_proto(message)
        except (InvalidDeny, DecodeError) as error:
            self._cache.set_aside(_ITEM, str(error))
            return node_pb.DenyList()
        return message
