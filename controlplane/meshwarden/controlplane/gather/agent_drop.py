"""What agents say that was dropped before it came here.

The words become labels and rows that stay. So a node is believed for tenants of its own entries, and words are known
ones: whoever makes some up can't use up the room that others' counts need.
"""

from typing import Final, NamedTuple

from meshwarden.controlplane.gather.call import Owns
from meshwarden.controlplane.gather.tally import AGENT_STAGES, RECEIVE
from meshwarden.v1.report_pb2 import Drop

OTHER: Final = "other"
_SIGNALS: Final = frozenset({"call", "span", "point", "log", "record"})
REASONS: Final = frozenset(
    {"queue_full", "disk_full", "too_large", "malformed", "rate_limited", "unidentified", "corrupt", "refused"}
    | {"shutdown", "overload"}
)
_MAX_COUNT: Final = 2**53


class AgentDrop(NamedTuple):
    """What was dropped where, of which signal and tenant, and why; the tenant is empty if it is none of the node's."""

    stage: str
    signal: str
    reason: str
    tenant: str
    items: int

    @classmethod
    def read(cls, drop: Drop, node: str, owns: Owns) -> "AgentDrop":
        """Reads what `node` says, as far as it is believed."""
        return cls(
            drop.stage if drop.stage in AGENT_STAGES else RECEIVE,
            drop.signal if drop.signal in _SIGNALS else OTHER,
            drop.reason if drop.reason in REASONS else OTHER,
            drop.tenant if drop.tenant and owns(node, drop.tenant, "") else "",
            min(drop.count, _MAX_COUNT),
        )
