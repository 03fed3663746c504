"""What is forgotten of the ledger: what is too old, and where it is full the oldest of whoever has most."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import apsw

from meshwarden.controlplane.gather.durable import size_bytes, transaction

_FULLEST: Final = "SELECT region, count(*) FROM ledger GROUP BY region ORDER BY count(*) DESC LIMIT 1"
_GREEDIEST: Final = "SELECT owner FROM ledger WHERE region = ? GROUP BY owner ORDER BY count(*) DESC LIMIT 1"


def trim(db: apsw.Connection, own: str, oldest_s: int, max_size_bytes: int) -> Counter[str]:
    """Forgets rows, on a thread; returns how many for the lack of room: {tenant: rows}.

    Of the region that has most the tenant that has most loses its oldest; so another region, whatever it tells, pushes
    out none of ours.

    Args:
        db: the file.
        own: our region.
        oldest_s: what is older goes, in seconds since 1970.
        max_size_bytes: how much of the file may be in use.

    Raises:
        apsw.Error: the file can't be written.
    """
    forgotten: Counter[str] = Counter()
    with transaction(db):
        db.execute("DELETE FROM ledger WHERE minute < ?", (oldest_s,))
        while size_bytes(db) > max_size_bytes:
            region, count = db.execute(_FULLEST).fetchone() or ("", 0)
            rows = _of_own(db, region) if region == own else _of_other(db, region, count)
            if not rows:
                break
            forgotten.update(rows)
    db.execute("PRAGMA incremental_vacuum").fetchall()
    return forgotten


def _of_own(db: apsw.Connection, region: str) -> Counter[str]:
    """The oldest tenth of the minutes of the tenant that has most; its newest stays in any case."""
    owner = db.execute(_GREEDIEST, (region,)).get
    select = "SELECT DISTINCT minute FROM ledger WHERE region = ? AND owner = ? ORDER BY minute"
    minutes = db.execute(select, (region, owner)).fetchall()
    if len(minutes) < 2:
        return Counter()
    until = minutes[max(1, len(minutes) // 10)][0]
    db.execute("DELETE FROM ledger WHERE region = ? AND owner = ? AND minute < ?", (region, owner, until))
    return Counter({owner: db.changes()})


def _of_other(db: apsw.Connection, region: str, count: int) -> Counter[str]:
    """The oldest tenth of what another region has told, and the rest of the last minute of that."""
    nth = "SELECT minute FROM ledger WHERE region = ? ORDER BY minute LIMIT 1 OFFSET ?"
    values = (region, db.execute(nth, (region, count // 10)).get)
    select = "SELECT owner, count(*) FROM ledger WHERE region = ? AND minute <= ? GROUP BY owner"
    rows: Iterable[Any] = db.execute(select, values).fetchall()
    db.execute("DELETE FROM ledger WHERE region = ? AND minute <= ?", values)
    return Counter(dict(rows))
