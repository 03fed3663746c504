"""The spans that calls of models were counted of, so that none counts twice: the last of each tenant, on disk too."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import apsw

from meshwarden.v1.report_pb2 import ModelCall

KNOWN: Final = 16_384
"""How many spans of a tenant are known."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS cost_span (
  tenant TEXT NOT NULL, slot INTEGER NOT NULL, number INTEGER NOT NULL, service TEXT NOT NULL, id BLOB NOT NULL,
  tells INTEGER NOT NULL, PRIMARY KEY (tenant, slot)
) WITHOUT ROWID
"""
_PUT: Final = "INSERT OR REPLACE INTO cost_span VALUES (?, ?, ?, ?, ?, ?)"


class Span(NamedTuple):
    """A span of a service; ids of others' spans are others'."""

    service: str
    id: int


class Spans:
    """Those of one tenant."""

    def __init__(self) -> None:
        # {span: whether tokens were counted of it or of one above it; else of one below it, or it told of none}
        self._known: OrderedDict[Span, bool] = OrderedDict()
        self._fresh: list[tuple[Span, bool]] = []
        self._number = 0

    def is_first(self, service: str, call: ModelCall) -> bool:
        """Whether a call is counted for the first time: neither its span was, nor one right above or below it."""
        if not call.id:
            return True
        own, above = Span(service, call.id), Span(service, call.parent_id)
        is_first = own not in self._known and not self._known.get(above, False)
        tells = not call.unmetered and not call.refused
        self._note(own, tells)
        if call.parent_id and tells:
            self._note(above, False)
        return is_first

    def take(self) -> list[tuple[Span, bool]]:
        """Removes and returns what is not in the file."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def give_back(self, fresh: list[tuple[Span, bool]]) -> None:
        """Takes it back: it could not be written."""
        self._fresh[:0] = fresh

    def restore(self, number: int, span: Span, tells: bool) -> None:
        """Takes a span of the file, in the order in which they came."""
        self._number, self._known[span] = number, tells

    def rows(self, tenant: str, fresh: list[tuple[Span, bool]]) -> list[tuple[Any, ...]]:
        """What is to be written, so that no tenant has more than KNOWN."""
        found = []
        for span, tells in fresh[-KNOWN:]:
            self._number += 1
            slot = self._number % KNOWN
            found.append((tenant, slot, self._number, span.service, span.id.to_bytes(8, "big"), int(tells)))
        return found

    def _note(self, span: Span, tells: bool) -> None:
        if span in self._known:
            return
        self._known[span] = tells
        self._fresh.append((span, tells))
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)


def read(db: apsw.Connection) -> dict[str, Spans]:
    """Makes the table, if it isn't there, and returns what is in it: `{tenant: its spans}`."""
    db.execute(_SCHEMA)
    found: dict[str, Spans] = {}
    row: Any
    for row in db.execute("SELECT tenant, number, service, id, tells FROM cost_span ORDER BY tenant, number"):
        tenant, number, service, span_id, tells = row
        span = Span(service, int.from_bytes(span_id, "big"))
        found.setdefault(tenant, Spans()).restore(number, span, bool(tells))
    return found


def write(db: apsw.Connection, spans: Mapping[str, Spans], fresh: Mapping[str, list[tuple[Span, bool]]]) -> None:
    """Writes the newest spans of tenants."""
    for tenant, of_tenant in fresh.items():
        db.executemany(_PUT, spans[tenant].rows(tenant, of_tenant))
