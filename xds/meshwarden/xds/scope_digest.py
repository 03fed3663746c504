"""The digest of a scope, by which a control plane sees that an agent holds what it would be told.

Both sides make it here, of the message that would tell all of the scope. So what a newer control plane tells and an
older agent has dropped makes another digest, and a field that is new is in it once it is told. Whoever makes it
otherwise is told everything anew, and that is all that comes of it.
"""

from collections.abc import Iterable
from typing import Final

from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.xds.snapshot import Resource
from meshwarden.xds.wire import digest_of

_MARK: Final = b"meshwarden scope, form 1"


def scope_digest(beside: v1.ScopeUpdate, resources: Iterable[Resource]) -> bytes:
    """The digest, 32 bytes: of all that a scope is, in whatever order its resources come.

    Args:
        beside: an update that tells all of the scope but for its resources; `later` is left out if it has no forms.
        resources: the scope's, each type and name once.
    """
    digests = sorted(item.digest for item in resources)
    return digest_of((_MARK, beside.SerializeToString(deterministic=True), b"".join(digests)))
