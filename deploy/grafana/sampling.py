"""What tail sampling makes of traces on their way to backends; without `[tail_sampling]` there is none of it."""

from typing import Final

from board import Panel, Query, Row


def _spans(kind: str) -> str:
    return f'sum by (tenant) (rate(meshwarden_telemetry_{kind}_total{{stage="control.sample"}}[$__rate_interval]))'


SAMPLING: Final = Row(
    "Tail sampling",
    (
        Panel(
            "Traces decided on, by what decided",
            (
                Query(
                    "sum by (reason) (rate(meshwarden_tail_traces_total[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
            about="complete, waited and full leave a trace to chance; every other reason keeps it.",
            width=12,
        ),
        Panel(
            "Spans kept and dropped",
            (Query(_spans("passed"), "kept {{tenant}}"), Query(_spans("dropped"), "dropped {{tenant}}")),
            about="The mesh's own have no tenant.",
            width=12,
        ),
        Panel("Spans that wait", (Query("meshwarden_tail_waiting_spans", "{{tenant}}"),), width=12),
        Panel(
            "What they take",
            (Query("meshwarden_tail_waiting_bytes", "in memory and on disk"),),
            "bytes",
            about="Beyond max_waiting_bytes the oldest of whoever has most are decided on.",
            width=12,
        ),
    ),
)
