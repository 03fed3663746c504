"""The dashboard of objectives: their error budgets and how fast these go."""

from typing import Final

from board import Board, Panel, Query, Row, Variable

OBJECTIVES: Final = Board(
    "meshwarden-slo",
    "Meshwarden / SLO",
    "Objectives, their error budgets and how fast these go. The rules come from `meshwarden slo rules`.",
    (
        Row(
            "Budgets",
            (
                Panel(
                    "Objectives", (Query('slo:objective:ratio{slo=~"$slo"}', "{{slo}}"),), "percentunit", "number", 24
                ),
                Panel(
                    "Left of the budget",
                    (Query('slo:budget_left:ratio{slo=~"$slo"}', "{{slo}}"),),
                    "percentunit",
                    width=12,
                    about="Of the whole window; below 0 it is overspent.",
                ),
                Panel(
                    "Alerts",
                    (
                        Query(
                            'count by (alertname, slo) (ALERTS{slo=~"$slo", alertstate="firing"}) or on () vector(0)',
                            "{{alertname}} {{slo}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Burn rates",
            tuple(
                Panel(
                    f"{title} (alert at {factor})",
                    (Query(f'slo:burn:rate{{slo=~"$slo", burn="{factor}"}}', "{{slo}} {{span}}"),),
                    width=12,
                    about="1 spends the budget exactly by the end of the window. An alert fires while both are above.",
                )
                for title, factor in (
                    ("An hour and five minutes", "14.4"),
                    ("Six hours and thirty minutes", "6"),
                    ("A day and two hours", "3"),
                    ("Three days and six hours", "1"),
                )
            ),
        ),
        Row(
            "Counts",
            (
                Panel(
                    "Calls in the last hour",
                    (Query('slo:events:increase{slo=~"$slo", burn="14.4", span="long"}', "{{slo}}"),),
                    width=12,
                ),
                Panel(
                    "Bad ones",
                    (Query('slo:errors:increase{slo=~"$slo", burn="14.4", span="long"}', "{{slo}}"),),
                    width=12,
                ),
            ),
        ),
    ),
    (Variable("slo", "slo:objective:ratio", "slo"),),
)
