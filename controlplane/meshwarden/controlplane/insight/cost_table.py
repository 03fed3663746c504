"""Costs in the file: sums by minute, later by hour and by day, and what is shown to Prometheus.

Rows become coarser with age, and nothing of them is lost by that. Where there are too many, those of the tenant that
has most become coarser sooner, and last of all its oldest are forgotten.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import add as added
from typing import Any, Final, NamedTuple

import apsw

MAX_ROWS: Final = 500_000
ROW_BYTES: Final = 160
"""What a row takes, about."""
DIMENSIONS: Final = ("tenant", "service", "provider", "model")
MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400
# How old rows become of the next size; and when they are forgotten.
_BY_MINUTE_S: Final = 2 * DAY_S
_BY_HOUR_S: Final = 62 * DAY_S
_KEEP_S: Final = 400 * DAY_S


class Series(NamedTuple):
    """Whose calls, and of what."""

    tenant: str
    service: str
    provider: str
    model: str


class Amount(NamedTuple):
    """How much: each as a field of `Cost` in the schema."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced_tokens: int = 0
    unpriced_calls: int = 0
    unmetered_calls: int = 0
    refused_calls: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Both together."""
        return Amount(*map(added, self, other))

    @property
    def is_priced(self) -> bool:
        """Whether the price is known of any of the calls."""
        return self.calls > self.unpriced_calls + self.unmetered_calls


_KEY: Final = ", ".join(DIMENSIONS)
_AMOUNTS: Final = ", ".join(Amount._fields)
# A sum that is too large for an integer is an error; one of floats never is.
_SUMS: Final = ", ".join(f"total({name})" for name in Amount._fields)
_TYPES: Final = ", ".join(f"{name} {'REAL' if name == 'usd' else 'INTEGER'} NOT NULL" for name in Amount._fields)
_MORE: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in Amount._fields)
_TEXTS: Final = ", ".join(f"{name} TEXT NOT NULL" for name in DIMENSIONS)
_PLACES: Final = ", ".join("?" * len(Amount._fields))
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS cost (
  start_s INTEGER NOT NULL, step_s INTEGER NOT NULL, {_TEXTS}, {_TYPES}, PRIMARY KEY (start_s, step_s, {_KEY})
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cost_total ({_TEXTS}, {_TYPES}, last_s INTEGER NOT NULL, PRIMARY KEY ({_KEY})) WITHOUT ROWID
"""
_ADD: Final = f"INSERT INTO cost VALUES (?, ?, ?, ?, ?, ?, {_PLACES}) ON CONFLICT DO UPDATE SET {_MORE}"  # noqa: S608
_TOTAL: Final = f"""
INSERT INTO cost_total VALUES (?, ?, ?, ?, {_PLACES}, ?) ON CONFLICT DO UPDATE SET {_MORE}, last_s = excluded.last_s
"""  # noqa: S608 - names of our own
_FOLDED: Final = "step_s < :step AND start_s < :before AND (:tenant = '' OR tenant = :tenant)"
_FOLD: Final = f"""
INSERT INTO cost SELECT start_s - start_s % :step, :step, {_KEY}, {_SUMS} FROM cost WHERE {_FOLDED}
GROUP BY start_s - start_s % :step, {_KEY} ON CONFLICT DO UPDATE SET {_MORE}
"""  # noqa: S608 - names of our own
_WITHIN: Final = """
start_s + step_s > :start AND start_s < :end AND (:tenant = '' OR tenant = :tenant)
AND (:service = '' OR service = :service) AND (:model = '' OR model = :model)
"""


@dataclass(frozen=True)
class Question:
    """What to add up.

    Attributes:
        start_s: since when, in seconds since 1970.
        end_s: until when.
        tenant: whose; empty: everybody's.
        service: of which service; empty: of all.
        model: of which model; empty: of all.
        by: some of DIMENSIONS.
        step_s: HOUR_S or DAY_S to add up by these; 0 for all time together.
        limit: how many sums.
    """

    start_s: int
    end_s: int
    tenant: str = ""
    service: str = ""
    model: str = ""
    by: tuple[str, ...] = DIMENSIONS
    step_s: int = 0
    limit: int = 1000


class Sum(NamedTuple):
    """One of the sums that were asked for: `{dimension: …}`, the beginning of its hour or day or 0, and how much."""

    of: dict[str, str]
    start_s: int
    amount: Amount


def create(db: apsw.Connection) -> None:
    """Makes the tables, if they aren't there."""
    db.execute(_SCHEMA)


def count(db: apsw.Connection) -> int:
    """How many rows there are."""
    return int(db.execute("SELECT count(*) FROM cost").get or 0)


def totals(db: apsw.Connection) -> Iterator[tuple[Series, Amount, int]]:
    """All that is shown to Prometheus, and when it last grew, in seconds since 1970."""
    row: Sequence[Any]
    for row in db.execute("SELECT * FROM cost_total"):
        yield Series(*row[: len(DIMENSIONS)]), Amount(*row[len(DIMENSIONS) : -1]), row[-1]


def add(db: apsw.Connection, rows: Mapping[tuple[int, Series], Amount]) -> None:
    """Adds to minutes, `{(its beginning, series): how much}`."""
    db.executemany(_ADD, ((start_s, MINUTE_S, *series, *amount) for (start_s, series), amount in rows.items()))


def add_totals(db: apsw.Connection, found: Mapping[Series, Amount], now_s: int) -> None:
    """Adds to what is shown to Prometheus."""
    db.executemany(_TOTAL, ((*series, *amount, now_s) for series, amount in found.items()))


def forget_totals(db: apsw.Connection, oldest_s: int) -> None:
    """Forgets what has not grown since."""
    db.execute("DELETE FROM cost_total WHERE last_s < ?", (oldest_s,))


def tidy(db: apsw.Connection, now_s: int, max_rows: int) -> Counter[str]:
    """Makes old rows coarser, within a transaction; returns how many were forgotten for the lack of room, by tenant."""
    _fold(db, HOUR_S, now_s - _BY_MINUTE_S)
    _fold(db, DAY_S, now_s - _BY_HOUR_S)
    db.execute("DELETE FROM cost WHERE start_s < ?", (now_s - _KEEP_S,))
    forgotten: Counter[str] = Counter()
    while (over := count(db) - max_rows) > 0:
        greediest = "SELECT tenant, count(*) FROM cost GROUP BY tenant ORDER BY count(*) DESC LIMIT 1"
        tenant, had = db.execute(greediest).fetchone() or ("", 0)
        for step_s in (HOUR_S, DAY_S):
            _fold(db, step_s, now_s, tenant)
        left = int(db.execute("SELECT count(*) FROM cost WHERE tenant = ?", (tenant,)).get or 0)
        if left < had:
            continue
        oldest = (
            "SELECT start_s, step_s, tenant, service, provider, model FROM cost WHERE tenant = ? ORDER BY 1, 2 LIMIT ?"
        )
        gone: list[Any] = db.execute(oldest, (tenant, over)).fetchall()
        where = "start_s = ? AND step_s = ? AND tenant = ? AND service = ? AND provider = ? AND model = ?"
        db.executemany(f"DELETE FROM cost WHERE {where}", gone)  # noqa: S608 - names of our own
        forgotten[tenant] += len(gone)
    return forgotten


def read(db: apsw.Connection, question: Question) -> tuple[list[Sum], Amount, int]:
    """Returns the sums, the dearest first or in the order of time, all of it together, and how many are left out."""
    values = {**asdict(question), "start": question.start_s, "end": question.end_s, "step": question.step_s}
    time = "start_s - start_s % :step" if question.step_s else "NULL"
    by = ", ".join((time, *question.by))
    select = f"""
      SELECT {by}, count(*) OVER (), {_SUMS}, total(usd) AS usd, total(input_tokens) + total(output_tokens) AS tokens
      FROM cost WHERE {_WITHIN} GROUP BY {by} ORDER BY {time}, usd DESC, tokens DESC, {by} LIMIT :limit
    """  # noqa: S608 - names of our own
    rows: list[Any] = db.execute(select, values).fetchall()
    whole: Any = db.execute(f"SELECT {_SUMS} FROM cost WHERE {_WITHIN}", values).fetchone()  # noqa: S608
    width = 1 + len(question.by)
    sums = [
        Sum(dict(zip(question.by, row[1:width], strict=True)), row[0] or 0, _amount(row[width + 1 : -2]))
        for row in rows
    ]
    return sums, _amount(whole), (rows[0][width] if rows else 0) - len(rows)


def _fold(db: apsw.Connection, step_s: int, before_s: int, tenant: str = "") -> None:
    """Adds up rows that begin before a moment and are smaller than a step, those of a tenant or all."""
    values = {"step": step_s, "before": before_s - before_s % step_s, "tenant": tenant}
    db.execute(_FOLD, values)
    db.execute(f"DELETE FROM cost WHERE {_FOLDED}", values)  # noqa: S608 - names of our own


def _amount(values: Sequence[float]) -> Amount:
    counts: list[Any] = [int(value) for value in values]
    return Amount(*counts)._replace(usd=values[Amount._fields.index("usd")])
