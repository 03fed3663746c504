"""A message on its way to a node: bytes, in pieces that other sessions may have as well.

What a thousand nodes are told is the same but for some bytes. So what is the same is serialised once, and each message
names it; the pieces of a large one are put together when it is written and not before: one that waits holds none.
"""

from collections.abc import Iterable
from typing import Final

from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.xds.wire import lead

CONFIG: Final = "config"
_CONFIG: Final = v1.SyncResponse.CONFIG_FIELD_NUMBER
_SCOPES: Final = v1.ConfigUpdate.SCOPES_FIELD_NUMBER

Pieces = tuple[bytes, ...]
"""Bytes of a message, one piece after the other."""


class Message:
    """A SyncResponse.

    Attributes:
        kind: which one, "config" for instance.
        size_bytes: of all of it.
        revision: which one a configuration brings a node to; 0 of others.
        said: what is in it; None of a configuration.
    """

    __slots__ = ("_pieces", "kind", "revision", "said", "size_bytes")

    def __init__(self, kind: str, pieces: Pieces, revision: int = 0, said: v1.SyncResponse | None = None) -> None:
        self.kind, self._pieces, self.revision, self.said = kind, pieces, revision, said
        self.size_bytes = sum(map(len, pieces))

    @classmethod
    def of(cls, said: v1.SyncResponse) -> "Message":
        """A message that is small, or the same for all; `said` is not changed any more."""
        return cls(said.WhichOneof("message") or "", (said.SerializeToString(),), said=said)

    @classmethod
    def config(cls, revision: int, scopes: Iterable[Pieces], rest: v1.ConfigUpdate) -> "Message":
        """A configuration.

        Args:
            revision: which one it brings the node to.
            scopes: the scopes that it has, each as `scope` makes it.
            rest: what else it has.
        """
        head = v1.ConfigUpdate(revision=revision)
        head.MergeFrom(rest)
        pieces = (head.SerializeToString(), *(piece for scope in scopes for piece in scope))
        return cls(CONFIG, (lead(_CONFIG, sum(map(len, pieces))), *pieces), revision)

    def body(self) -> bytes:
        """All of it; a large one is made anew each time."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def joined(self) -> "Message":
        """The same in one piece, for many to have."""
        return Message(self.kind, (self.body(),), self.revision, self.said)


def scope(update: v1.ScopeUpdate, resources: Pieces = ()) -> Pieces:
    """A scope of a configuration: an update, and further resources as `resources_of` makes them."""
    head = update.SerializeToString()
    return (lead(_SCOPES, len(head) + sum(map(len, resources))), head, *resources)


def resources_of(items: Iterable[v1.XdsResource]) -> bytes:
    """Resources as a part of a scope."""
    return v1.ScopeUpdate(resources=items).SerializeToString()
