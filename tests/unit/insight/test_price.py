"""List prices, as the package has them: what is known is exact, what isn't has none."""

import subprocess
import sys
from datetime import UTC, date, datetime
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.insight.price import ListPrices, Tokens

NOW_S = int(datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp())
PRICES = ListPrices()
MODELS = [
    ("openai", "gpt-4o-2024-08-06"),
    ("openai", "gpt-4o-mini"),
    ("anthropic", "claude-3-5-haiku-latest"),
    ("google", "gemini-2.5-pro"),
    ("mistral", "mistral-large-latest"),
]


@given(
    st.sampled_from(MODELS),
    st.integers(0, 20_000_000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2_000_000),
)
def test_a_price_is_what_the_package_says(
    model: tuple[str, str], count: int, cached: float, written: float, output: int
) -> None:
    of_cache = int(count * cached)
    tokens = Tokens(count, of_cache, int((count - of_cache) * written), output)
    usage: Any = Usage(
        input_tokens=tokens.input,
        cache_read_tokens=tokens.cached,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output,
    )
    when = datetime.fromtimestamp(NOW_S, UTC)
    wanted = calc_price(usage, model[1], provider_id=model[0], genai_request_timestamp=when).total_price
    assert PRICES.usd(*model, tokens, NOW_S) == pytest.approx(float(wanted), rel=1e-9, abs=1e-12)


def test_a_price_is_that_of_its_time() -> None:
    tokens = Tokens(1_000_000, 0, 0, 0)
    before, after = (int(datetime(2025, month, 1, tzinfo=UTC).timestamp()) for month in (5, 7))
    assert PRICES.usd("openai", "o3", tokens, before) == pytest.approx(10.0)
    assert PRICES.usd("openai", "o3", tokens, after) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o"),
        ("azure.ai.openai", "gpt-4o"),
        ("gcp.gemini", "gemini-2.5-pro"),
        ("gcp.vertex_ai", "gemini-2.5-pro"),
        ("gcp.gen_ai", "gemini-2.5-pro"),
        ("aws.bedrock", "anthropic.claude-3-5-sonnet-20240620-v1:0"),
        ("anthropic", "claude-sonnet-4-20250514"),
        ("mistral_ai", "mistral-large-latest"),
        ("x_ai", "grok-3"),
        ("deepseek", "deepseek-chat"),
        ("", "gpt-4o"),
    ],
)
def test_providers_are_known_by_the_names_of_the_conventions(provider: str, model: str) -> None:
    assert PRICES.usd(provider, model, Tokens(1000, 0, 0, 1000), NOW_S)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("meshwarden.stand_in", "stand-in-extractive-1"),
        ("openai", "gpt-of-tomorrow-9"),
        ("somebody", "gpt-4o"),
        ("openai", ""),
        ("", ""),
        ("", "x" * 128),
        ("(", "[("),
    ],
)
def test_what_is_not_known_has_no_price(provider: str, model: str) -> None:
    assert PRICES.usd(provider, model, Tokens(1000, 0, 0, 1000), NOW_S) is None


def test_a_model_that_has_no_price_for_what_was_taken_has_none() -> None:
    # An embedding has no price for output: whoever says that it gave some says what nobody knows the price of.
    model = ("openai", "text-embedding-3-small")
    assert PRICES.usd(*model, Tokens(1_000_000, 0, 0, 0), NOW_S) == pytest.approx(0.02)
    assert PRICES.usd(*model, Tokens(1_000_000, 0, 0, 1), NOW_S) is None


def test_it_says_whose_word_it_is_and_how_old() -> None:
    assert PRICES.source.startswith("genai-prices ")
    newest = PRICES.newest(date(2026, 11, 26))
    assert newest is not None
    assert date(2026, 1, 1) < newest <= date(2026, 11, 26)
    assert PRICES.newest(date(1990, 1, 1)) is None


def test_prices_are_loaded_when_they_are_asked_for() -> None:
    code = "import meshwarden.controlplane.insight.cost, sys; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
