"""What a call of a generative model costs by its provider's list prices, as the package genai-prices has them.

The prices come with the package: nothing is asked for over the network. They are loaded when the first call is told of,
which takes a moment and some megabytes. What isn't known has no price, never that of something like it.
"""

from bisect import bisect_left
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

PACKAGE: Final = "genai-prices"
_KEPT: Final = 4096
# As OpenTelemetry's conventions have it: as the package has it, where it would not find it.
_PROVIDERS: Final = {"x_ai": "x-ai", "gcp.gen_ai": "google"}


class Tokens(NamedTuple):
    """What one call took: all that went in, what of it was cached and written to the cache, and what came out."""

    input: int
    cached: int
    cache_write: int
    output: int


class _Rates(NamedTuple):
    """US dollars for a call, and for a token of each kind; None where nobody knows."""

    call: float
    input: float | None
    cached: float
    cache_write: float
    output: float | None

    def of(self, tokens: Tokens) -> float | None:
        plain = tokens.input - tokens.cached - tokens.cache_write
        if (tokens.input and self.input is None) or (tokens.output and self.output is None):
            return None
        known = (self.input or 0.0, self.cached, self.cache_write, self.output or 0.0)
        counts = (plain, tokens.cached, tokens.cache_write, tokens.output)
        return self.call + sum(rate * count for rate, count in zip(known, counts, strict=True))


class ListPrices:
    """The prices of the package. To be asked on one thread at a time."""

    def __init__(self) -> None:
        self._find = lru_cache(_KEPT)(_find)
        # {(a model's price, how many of its thresholds are passed): its rates}
        self._rates: dict[tuple[int, int], _Rates] = {}

    @property
    def source(self) -> str:
        """The package and its version."""
        return f"{PACKAGE} {version('genai-prices')}"

    def usd(self, provider: str, model: str, tokens: Tokens, time_s: int) -> float | None:
        """Returns what a call costs in US dollars; None if that is unknown.

        Args:
            provider: who was called, as its span says; empty if it doesn't.
            model: the model, likewise.
            tokens: what it took.
            time_s: when, in seconds since 1970: prices change.
        """
        found = self._find(provider, model)
        if found is None:
            return None
        price = found.get_prices(datetime.fromtimestamp(time_s, UTC))
        starts = _thresholds(price)
        passed = bisect_left(starts, tokens.input)
        key = (id(price), passed)
        if key not in self._rates:
            self._rates[key] = _rates(price, starts[passed - 1] + 1 if passed else 1)
        return self._rates[key].of(tokens)

    def newest(self, today: date) -> date | None:
        """Returns the day from which the newest price holds that began by today; None if none says since when."""
        return _newest(today)


def _find(provider: str, model: str) -> "ModelInfo | None":
    from genai_prices import data_snapshot  # a megabyte and a half, and of use where models are called alone

    everybody = data_snapshot.get_snapshot().providers
    found: Provider | None
    if provider:
        found = data_snapshot.find_provider_by_id(everybody, _PROVIDERS.get(provider, provider))
    else:
        lower = model.lower()
        matching = (one for one in everybody if one.model_match is not None and one.model_match.is_match(lower))
        found = next(matching, None)
    return found.find_model(model, all_providers=everybody) if found is not None and model else None


def _thresholds(price: "ModelPrice") -> list[int]:
    """From how many tokens of input on another price holds, for all of them."""
    tiered = (value.tiers for value in vars(price).values() if hasattr(value, "tiers"))
    return sorted({tier.start for tiers in tiered for tier in tiers})


def _rates(price: "ModelPrice", count: int) -> _Rates:
    """The rates of a price for calls with so many tokens of input, and for others between the same thresholds."""
    from genai_prices import Usage

    def usd(**used: int) -> Decimal:
        usage: Any = Usage(**used)
        return price.calc_price(usage)["total_price"]

    call, whole = usd(), usd(input_tokens=count)
    cached, cache_write = (
        usd(input_tokens=count, **{kind: count}) for kind in ("cache_read_tokens", "cache_write_tokens")
    )
    return _Rates(
        call=float(call),
        input=float((whole - call) / count) if price.input_mtok is not None else None,
        cached=float((cached - call) / count),
        cache_write=float((cache_write - call) / count),
        output=float(usd(input_tokens=count, output_tokens=1) - whole) if price.output_mtok is not None else None,
    )


@lru_cache(1)
def _newest(today: date) -> date | None:
    from genai_prices import data_snapshot

    prices = (model.prices for one in data_snapshot.get_snapshot().providers for model in one.models)
    conditional = (each.constraint for some in prices if isinstance(some, list) for each in some)
    starts = (getattr(constraint, "start_date", None) for constraint in conditional)
    return max((start for start in starts if start is not None and start <= today), default=None)
