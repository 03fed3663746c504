"""How much of the history of resources is kept."""

from datetime import timedelta

from pydantic import Field

from meshwarden.controlplane.config.value import Frozen
from meshwarden.controlplane.history.prune import Bounds


class HistoryConfig(Frozen):
    """What any of these leaves out is forgotten, but never the newest change."""

    changes: int = Field(default=10_000, ge=1, le=1_000_000)
    days: float = Field(default=90.0, gt=0.0, le=3650.0)
    max_bytes: int = Field(default=256 << 20, ge=1 << 20)

    def bounds(self) -> Bounds:
        """As whoever forgets takes them."""
        return Bounds(self.changes, timedelta(days=self.days), self.max_bytes)
