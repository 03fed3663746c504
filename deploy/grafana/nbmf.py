"""The dashboard of a memory that keeps records in tiers (NBMF), by what it measures itself and by what calls it."""

from typing import Final

from board import Board, Panel, Query, Row, Variable
from expression import calls, quantiles

MINE: Final = 'mesh_tenant=~"$tenant"'
# What is hot is warm or cold as well.
KEPT: Final = f'{MINE}, nbmf_tier!="hot"'
MOVE: Final = "{{nbmf_tier_from}} → {{nbmf_tier_to}}"
BY_MOVE: Final = "nbmf_tier_from, nbmf_tier_to"
_RAW: Final = f"sum(nbmf_tier_raw_size_bytes{{{KEPT}}})"
_STORED: Final = f"sum(nbmf_tier_size_bytes{{{KEPT}}})"


def rate(name: str, by: str = "") -> str:
    """Events a second of a counter of the memory's, by some labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({name}{{{MINE}}}[$__rate_interval]))"


def _slowest(name: str, by: str) -> str:
    return f"histogram_quantile(0.95, sum by (le, {by}) (rate({name}_bucket{{{MINE}}}[$__rate_interval])))"


MEMORY: Final = Board(
    "meshwarden-nbmf",
    "Meshwarden / NBMF memory",
    "Records in a hot, a warm and a cold tier: how many, how small, how quick, and what moves.",
    (
        Row(
            "Now",
            (
                Panel("Records", (Query(f"sum(nbmf_tier_records{{{KEPT}}})"),), "short", "number", 4),
                Panel("Their size", (Query(_RAW),), "bytes", "number", 4),
                Panel("Stored in", (Query(_STORED),), "bytes", "number", 4),
                Panel(
                    "Compression ratio",
                    (Query(f"{_RAW} / {_STORED}"),),
                    "short",
                    "number",
                    4,
                    "How many bytes one stored byte stands for.",
                ),
                Panel(
                    "Reads from memory",
                    (
                        Query(
                            f'sum(rate(nbmf_hits_total{{{MINE}, nbmf_tier="hot"}}[$__rate_interval])) '
                            f"/ {rate('nbmf_hits_total')}"
                        ),
                    ),
                    "percentunit",
                    "number",
                    4,
                    "The share of reads that the hot tier answered.",
                ),
                Panel(
                    "Corrupt copies",
                    (Query(f"sum(nbmf_corrupt_total{{{MINE}}})"),),
                    "short",
                    "number",
                    4,
                    "Reads whose copy was not what was written: answered DATA_LOSS, never returned.",
                ),
            ),
        ),
        Row(
            "Tiers",
            (
                Panel("Records", (Query(f"sum by (nbmf_tier) (nbmf_tier_records{{{MINE}}})", "{{nbmf_tier}}"),)),
                Panel(
                    "Stored bytes",
                    (Query(f"sum by (nbmf_tier) (nbmf_tier_size_bytes{{{MINE}}})", "{{nbmf_tier}}"),),
                    "bytes",
                ),
                Panel(
                    "Compression ratio",
                    (
                        Query(
                            f"sum by (nbmf_tier) (nbmf_tier_raw_size_bytes{{{MINE}}}) "
                            f"/ (sum by (nbmf_tier) (nbmf_tier_size_bytes{{{MINE}}}) > 0)",
                            "{{nbmf_tier}}",
                        ),
                    ),
                ),
                Panel("Promotions", (Query(rate("nbmf_promotions_total", BY_MOVE), MOVE),), "ops", width=12),
                Panel("Demotions", (Query(rate("nbmf_demotions_total", BY_MOVE), MOVE),), "ops", width=12),
            ),
        ),
        Row(
            "Reads and writes",
            (
                Panel(
                    "Reads, by the tier that answered",
                    (
                        Query(rate("nbmf_hits_total", "nbmf_tier"), "{{nbmf_tier}}"),
                        Query(rate("nbmf_misses_total"), "no such record"),
                    ),
                    "ops",
                ),
                Panel(
                    "How long reads take, p95",
                    (Query(_slowest("nbmf_read_duration_seconds", "nbmf_tier"), "{{nbmf_tier}}"),),
                    "s",
                    exemplars=True,
                ),
                Panel(
                    "How long writes take",
                    quantiles("nbmf_write_duration_seconds", MINE),
                    "s",
                    about="A record is on disk before its write is answered.",
                    exemplars=True,
                ),
                Panel(
                    "Who calls it",
                    (
                        Query(
                            calls(
                                'reporter="destination", destination_tenant=~"$tenant", method=~"/.*[.]Memory/.*"',
                                "source_tenant, source_service, method",
                            ),
                            "{{source_tenant}}/{{source_service}} {{method}}",
                        ),
                    ),
                    "reqps",
                    width=24,
                ),
            ),
        ),
    ),
    (Variable("tenant", "nbmf_tier_records", "mesh_tenant"),),
)
