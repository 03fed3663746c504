"""The dashboard of what calls of generative models cost: tokens and money, by list prices."""

from typing import Final

from board import Board, Panel, Query, Row, Variable

_OF: Final = 'tenant=~"$tenant"'
_USD: Final = "meshwarden_llm_cost_usd_total"
_TOKENS: Final = "meshwarden_llm_tokens_total"
_UNPRICED: Final = "meshwarden_llm_unpriced_tokens_total"
_LOWER: Final = "Less than all where prices are unknown: see the tokens of unknown price."


def _rate(name: str, by: str = "", more: str = "") -> str:
    """How much a second a counter grows, by some labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({name}{{{_OF}{more}}}[$__rate_interval]))"


def _each_hour(by: str) -> str:
    return f"{_rate(_USD, by)} * 3600"


COST: Final = Board(
    "meshwarden-cost",
    "Meshwarden / Cost",
    "What calls of generative models cost, by tenant, service and model: tokens, and money by list prices.",
    (
        Row(
            "Now",
            (
                Panel("USD an hour", (Query(_each_hour("")),), "currencyUSD", "number", 6, f"An estimate. {_LOWER}"),
                Panel("Tokens a second", (Query(_rate(_TOKENS)),), "ops", "number", 6),
                Panel(
                    "Of unknown price",
                    (Query(f"{_rate(_UNPRICED)} / {_rate(_TOKENS)}"),),
                    "percentunit",
                    "number",
                    6,
                    "The share of tokens of which nobody knows what they cost.",
                ),
                Panel(
                    "Age of the newest price",
                    (Query("max(meshwarden_llm_prices_age_seconds)"),),
                    "s",
                    "number",
                    6,
                    "What prices have changed to since then is not known: upgrade genai-prices.",
                ),
            ),
        ),
        Row(
            "Money",
            (
                Panel(
                    "USD an hour by tenant",
                    (Query(_each_hour("tenant"), "{{tenant}}"),),
                    "currencyUSD",
                    about=_LOWER,
                ),
                Panel(
                    "USD an hour by service",
                    (Query(_each_hour("tenant, service"), "{{tenant}}/{{service}}"),),
                    "currencyUSD",
                    about=_LOWER,
                ),
                Panel(
                    "USD an hour by model",
                    (Query(_each_hour("provider, model"), "{{provider}} {{model}}"),),
                    "currencyUSD",
                    about=_LOWER,
                ),
            ),
        ),
        Row(
            "Tokens",
            (
                Panel("Tokens by direction", (Query(_rate(_TOKENS, "direction"), "{{direction}}"),), "ops"),
                Panel(
                    "Tokens by service", (Query(_rate(_TOKENS, "tenant, service"), "{{tenant}}/{{service}}"),), "ops"
                ),
                Panel(
                    "Tokens of unknown price",
                    (Query(_rate(_UNPRICED, "provider, model"), "{{provider}} {{model}}"),),
                    "ops",
                ),
                Panel(
                    "Calls by what is known of their price",
                    (Query(_rate("meshwarden_llm_calls_total", "price"), "{{price}}"),),
                    "reqps",
                    width=12,
                    about="unmetered: the span tells of no tokens. refused: it tells of what can't be.",
                ),
                Panel(
                    "What cost most",
                    (Query(f"topk(20, {_each_hour('tenant, service, model')})"),),
                    "currencyUSD",
                    "rows",
                    12,
                ),
            ),
        ),
    ),
    (Variable("tenant", "meshwarden_llm_tokens_total", "tenant"),),
)
