"""Costs as Prometheus reads them. What has no price has no series of costs, rather than one of 0."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from meshwarden.controlplane.insight.cost_table import DIMENSIONS, Amount, Series

DIRECTIONS: Final = ("input", "cached_input", "cache_write", "output")
"""Each token is of one of them."""


def families(found: Sequence[tuple[Series, Amount]]) -> Iterator[Metric]:
    """What was counted of each series."""
    yield _family(
        "meshwarden_llm_tokens",
        "Tokens that calls of models took, before any sampling; input is what was neither cached nor put into a cache.",
        "direction",
        ((series, _tokens(amount)) for series, amount in found),
    )
    yield _family(
        "meshwarden_llm_calls",
        "Calls of models, by whether their price is known: priced, unpriced, unmetered (no tokens told) or refused.",
        "price",
        ((series, _calls(amount)) for series, amount in found),
    )
    usd = "What calls of models cost in US dollars by list prices, those whose price is known."
    cost = CounterMetricFamily("meshwarden_llm_cost_usd", usd, labels=DIMENSIONS)
    text = "Tokens of calls of models whose price is unknown."
    unpriced = CounterMetricFamily("meshwarden_llm_unpriced_tokens", text, labels=DIMENSIONS)
    for series, amount in found:
        if amount.is_priced:
            cost.add_metric(series, amount.usd)
        unpriced.add_metric(series, amount.unpriced_tokens)
    yield cost
    yield unpriced


def age(newest: date | None, now: datetime) -> Metric:
    """How old the newest price is that is known."""
    text = "How long ago the newest price began that is known; what has changed since is not."
    family = GaugeMetricFamily("meshwarden_llm_prices_age_seconds", text)
    if newest is not None:
        family.add_metric((), (now - datetime.combine(newest, time.min, UTC)).total_seconds())
    return family


def _family(name: str, text: str, label: str, found: Iterable[tuple[Series, Mapping[str, int]]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(*DIMENSIONS, label))
    for series, counts in found:
        for value, count in counts.items():
            if count:
                family.add_metric((*series, value), count)
    return family


def _tokens(amount: Amount) -> Mapping[str, int]:
    plain = amount.input_tokens - amount.cached_tokens - amount.cache_write_tokens
    counts = (plain, amount.cached_tokens, amount.cache_write_tokens, amount.output_tokens)
    return dict(zip(DIRECTIONS, counts, strict=True))


def _calls(amount: Amount) -> Mapping[str, int]:
    return {
        "priced": amount.calls - amount.unpriced_calls - amount.unmetered_calls,
        "unpriced": amount.unpriced_calls,
        "unmetered": amount.unmetered_calls,
        "refused": amount.refused_calls,
    }
