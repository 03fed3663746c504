"""What calls of generative models cost, by tenant, service, provider and model.

Spans tell of the calls, and agents read them off all spans, before any sampling. Each is priced when it is written,
with the batch that brought it and in the same transaction: so a batch that comes again counts once, and what an agent
was answered for is there after a crash. What has no price is counted as that, never as nothing.

A tenant names at most so many models and series; what is beyond is counted as of OTHER. A call that one span tells of
and then the span above it, as where both a framework and the client below it are instrumented, counts once; so does a
span that comes again.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

import apsw
import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.model_call import Told
from meshwarden.controlplane.insight import cost_metrics, cost_span, cost_table
from meshwarden.controlplane.insight.cost_span import Span, Spans
from meshwarden.controlplane.insight.cost_table import Amount, Series
from meshwarden.controlplane.insight.price import Tokens
from meshwarden.v1.report_pb2 import ModelCall

OTHER: Final = "other"
UNKNOWN: Final = "unknown"
"""Stands for what a span does not say."""
MODELS_PER_TENANT: Final = 100
SERIES_PER_TENANT: Final = 1000
MAX_TOKENS: Final = 20_000_000
RETENTION: Final = timedelta(days=7)
"""How long a series is shown to Prometheus of which nothing comes any more."""
_MAX_NAME: Final = 128
_TIDY_S: Final = 3600
_NOTHING: Final = Amount()

log = structlog.get_logger()


class Prices(Protocol):
    """Knows what models cost."""

    @property
    def source(self) -> str:
        """Whose word it is."""

    def usd(self, provider: str, model: str, tokens: Tokens, time_s: int) -> float | None:
        """Returns what a call costs in US dollars; None if that is unknown."""

    def newest(self, today: date) -> date | None:
        """Returns the day from which the newest price holds that began by today."""


class _Batch(NamedTuple):
    """Calls that wait, and what they came to when they were written."""

    told: list[Told]
    spans: dict[str, list[tuple[Span, bool]]]
    counted: dict[Series, Amount]


class Costs(Collector):
    """The costs. A part of `Durable`, and shown to Prometheus."""

    def __init__(
        self,
        prices: Prices,
        clock: Callable[[], datetime],
        *,
        models_per_tenant: int = MODELS_PER_TENANT,
        series_per_tenant: int = SERIES_PER_TENANT,
        max_rows: int = cost_table.MAX_ROWS,
    ) -> None:
        """Starts empty.

        Args:
            prices: what models cost.
            clock: the present, aware.
            models_per_tenant: how many models a tenant may name within a week.
            series_per_tenant: how many of them and of services that call them, together.
            max_rows: how many rows all tenants have in the file.
        """
        self.prices = prices
        self._clock, self._max_rows = clock, max_rows
        self._models_per_tenant, self._series_per_tenant = models_per_tenant, series_per_tenant
        self._waiting: list[Told] = []
        # Prometheus reads on another thread.
        self._lock = threading.Lock()
        # {tenant: {series: (how much, when it last grew)}}
        self._totals: dict[str, dict[Series, tuple[Amount, int]]] = {}
        self._spans: dict[str, Spans] = {}
        self._rows = self._tidied_s = 0

    def add(self, told: Told) -> None:
        """Takes calls, to be written by the next flush; those that are there already are left out."""
        spans = self._spans.setdefault(told.tenant, Spans())
        calls = [call for call in told.calls if spans.is_first(told.service, call)]
        if calls:
            self._waiting.append(replace(told, calls=calls))

    def size_bytes(self) -> int:
        """How much of the file it has, about."""
        return self._rows * cost_table.ROW_BYTES

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        with self._lock:
            found = [(series, amount) for one in self._totals.values() for series, (amount, _) in one.items()]
        yield from cost_metrics.families(found)
        if found:  # else nobody has needed prices yet
            yield cost_metrics.age(self.prices.newest(self._clock().date()), self._clock())

    # -- the file

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        cost_table.create(db)
        self._spans = cost_span.read(db)
        for series, amount, last_s in cost_table.totals(db):
            self._totals.setdefault(series.tenant, {})[series] = (amount, last_s)
        self._rows = cost_table.count(db)

    def take(self) -> Any:
        """See `Part`."""
        told, self._waiting = self._waiting, []
        spans = {tenant: fresh for tenant, of_tenant in self._spans.items() if (fresh := of_tenant.take())}
        return _Batch(told, spans, {}) if told or spans else None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`. Prices are looked up here, on a thread: the first time that takes a while."""
        now_s = int(self._clock().timestamp())
        rows: dict[tuple[int, Series], Amount] = {}
        names: dict[str, _Names] = {}
        for told in waiting.told:
            known = names.get(told.tenant) or names.setdefault(told.tenant, self._names(told.tenant))
            for call in told.calls:
                series = known.series(told, call)
                amount = self._amount(series, call, told.time_s)
                key = (told.time_s - told.time_s % cost_table.MINUTE_S, series)
                rows[key] = rows.get(key, _NOTHING).plus(amount)
                waiting.counted[series] = waiting.counted.get(series, _NOTHING).plus(amount)
        cost_span.write(db, self._spans, waiting.spans)
        cost_table.add(db, rows)
        cost_table.add_totals(db, waiting.counted, now_s)
        if now_s - self._tidied_s >= _TIDY_S:
            self._tidy(db, now_s)

    def written(self, waiting: Any) -> None:
        """See `Part`."""
        now_s = int(self._clock().timestamp())
        with self._lock:
            for series, amount in waiting.counted.items():
                of_tenant = self._totals.setdefault(series.tenant, {})
                of_tenant[series] = (of_tenant.get(series, (_NOTHING, 0))[0].plus(amount), now_s)

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        self._waiting[:0] = waiting.told
        for tenant, fresh in waiting.spans.items():
            self._spans[tenant].give_back(fresh)

    def _tidy(self, db: apsw.Connection, now_s: int) -> None:
        for tenant, rows in cost_table.tidy(db, now_s, self._max_rows).items():
            log.warning("costs full: the oldest of whoever has most were forgotten", tenant=tenant, rows=rows)
        oldest_s = now_s - int(RETENTION.total_seconds())
        cost_table.forget_totals(db, oldest_s)
        with self._lock:
            for tenant, known in list(self._totals.items()):
                self._totals[tenant] = {series: one for series, one in known.items() if one[1] >= oldest_s}
        self._rows, self._tidied_s = cost_table.count(db), now_s

    # -- one call

    def _names(self, tenant: str) -> "_Names":
        return _Names(self._totals.get(tenant, {}), self._models_per_tenant, self._series_per_tenant)

    def _amount(self, series: Series, call: ModelCall, time_s: int) -> Amount:
        tokens = Tokens(call.input_tokens, call.cached_tokens, call.cache_write_tokens, call.output_tokens)
        if call.refused or max(tokens) > MAX_TOKENS or tokens.cached + tokens.cache_write > tokens.input:
            return Amount(refused_calls=1)
        if call.unmetered:
            return Amount(calls=1, unmetered_calls=1)
        usd = None if series.model == OTHER else self.prices.usd(call.provider, call.model, tokens, time_s)
        if usd is None:
            unpriced = tokens.input + tokens.output
            return Amount(1, *tokens, unpriced_tokens=unpriced, unpriced_calls=1)
        return Amount(1, *tokens, usd=usd)


class _Names:
    """What a tenant's calls are counted under."""

    def __init__(self, known: Iterable[Series], most_models: int, most_series: int) -> None:
        self._known = set(known)
        self._models = {(series.provider, series.model) for series in self._known}
        self._most_models, self._most_series = most_models, most_series

    def series(self, told: Told, call: ModelCall) -> Series:
        model = (_shown(call.provider), _shown(call.model))
        if model not in self._models and len(self._models) >= self._most_models:
            model = (OTHER, OTHER)
        series = Series(told.tenant, told.service, *model)
        if series not in self._known and len(self._known) >= self._most_series:
            series = Series(told.tenant, OTHER, OTHER, OTHER)
        self._known.add(series)
        self._models.add((series.provider, series.model))
        return series


def _shown(name: str) -> str:
    return name if name and len(name) <= _MAX_NAME and name.isprintable() else OTHER if name else UNKNOWN
