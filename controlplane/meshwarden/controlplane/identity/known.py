"""What a process has in memory of the store's records that certificates hang on.

It may lag behind the store by a moment, so that nothing is refused for it, and what is issued by it is recorded in a
commit that holds only where those records still stand as they were.
"""

from collections.abc import Callable
from dataclasses import dataclass

from meshwarden.controlplane.identity.record import NodeRecord
from meshwarden.v1.resources_pb2 import WorkloadEntry


@dataclass(frozen=True)
class Known:
    """Looks up records; each says at which revision it stands.

    Attributes:
        node: the record of a node, None if none is known.
        entry: the WorkloadEntry of a tenant and a name, None if none is known.
    """

    node: Callable[[str], NodeRecord | None] = lambda _: None
    entry: Callable[[str, str], WorkloadEntry | None] = lambda _, __: None
