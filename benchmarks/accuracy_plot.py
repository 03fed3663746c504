"""Draws what `benchmarks.accuracy` measured: what each tenant was served, second by second, beside its fair part.

    BENCH_TRACE=quota.json make bench NAME=quota && python -m benchmarks.accuracy_plot quota.json docs

writes docs/quotas/demand.svg and events.svg, and the table between the marks in docs/quotas.md.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy import EVENTS, MEAN, PHASE_S, WEIGHTS
from benchmarks.accuracy_figures import Record, fair, rate

BEFORE_S, AFTER_S = 4.0, PHASE_S
BEGIN, END = "<!-- made by benchmarks.accuracy_plot -->", "<!-- to here -->"
ROWS: Final = {
    "over-admission 1 s": ("over-admission in the fullest second", ""),
    "over-admission 10 s": ("… in the fullest 10 s", ""),
    "over-admission window": ("… in all", ""),
    "under-use": ("under-use", ""),
    "Jain": ("Jain's index of what tenants had beside their fair part", ""),
    "convergence step": ("a tenant calls six times as much", "6 s"),
    "convergence shift": ("load moves from the busiest points to the idlest", "6 s"),
    "convergence leave": ("a tenant leaves, and the others take its part", "6 s"),
    "convergence agent killed": ("an agent is killed, and its Envoys with it", "6 s once they are back"),
    "convergence partition": ("an agent is held still for 5 s (`whenAway: DENY`)", "6 s"),
    "convergence restart": ("the control plane is killed (`whenAway: DENY`)", ""),
    "machine in use": ("of the machine in use", ""),
}
"""What each figure is called, and by when Envoys can follow: a report, and a second to divide and to obey."""
# Okabe and Ito's, which the colour-blind tell apart.
COLOURS: Final = dict(zip(WEIGHTS, ("#0072b2", "#e69f00", "#009e73", "#cc79a7"), strict=True))
NAMES: Final = {"shared": "one limit, shared", "split": "the limit split among 20 points"}


def main() -> None:
    """Writes the figures and the table."""
    trace, docs = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    page, directory = docs / "quotas.md", docs / "quotas"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    page.write_text(f"{before}{begin}\n{_table(trace)}{end}{after}")
    directory.mkdir(exist_ok=True)
    # The same input gives the same file.
    mpl.rcParams.update({"svg.hashsalt": "meshwarden", "svg.fonttype": "none", "font.size": 8})
    for name, draw in (("demand", _demand), ("events", _events)):
        draw(trace).savefig(directory / f"{name}.svg", metadata={"Date": None})


def _table(trace: dict[str, Any]) -> str:
    """What a limit of so much did, and the same split up, in Markdown."""
    ours, theirs = trace["shared"]["figures"], trace["split"]["figures"]
    lines = [
        f"{trace['limit']} calls a second, of which {sum(MEAN.values()):.0f} are called for.",
        "",
        "| | one limit | split among 20 points | five-second reports allow |",
        "| --- | --- | --- | --- |",
    ]
    for name, (said, bound) in ROWS.items():
        lines.append(f"| {said} | {_told(name, ours[name])} | {_told(name, theirs[name])} | {bound} |")
    return "\n".join(lines) + "\n"


def _told(name: str, figure: float) -> str:
    if not name.startswith("convergence"):
        return f"{figure:.3f}" if name == "Jain" else f"{figure:.1f} %"
    return f"{figure:g} s" if figure < PHASE_S else f"not within {PHASE_S:g} s"


def _demand(trace: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), NAMES.items(), strict=True):
        run = trace[key]
        _tenants(axes, run, trace["limit"], *run["steady"])
        axes.set_title(title)
        axes.set_xlabel("seconds")
    figure.axes[0].set_ylabel("calls a second: served, and fair (dashed)")
    figure.axes[1].legend(loc="upper right", ncols=2)
    return figure


def _events(trace: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    run = trace["shared"]
    for axes, event in zip(figure.subplots(2, 3, sharey=True).flat, EVENTS, strict=True):
        at_s, _ = run["events"][event]
        _tenants(axes, run, trace["limit"], at_s - BEFORE_S, at_s + AFTER_S, zero_s=at_s)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(event)
    figure.axes[0].legend(loc="upper right", ncols=2)
    figure.supxlabel("seconds since it happened")
    figure.supylabel("calls a second: served, and fair (dashed)")
    return figure


def _tenants(
    axes: Axes, run: dict[str, Any], limit: float, begin_s: float, end_s: float, *, zero_s: float | None = None
) -> None:
    """A line of what each tenant was served, one of what it should have been, and the sum of all."""
    record = Record(run["served"], run["offered"])
    moments = [begin_s + number for number in range(int(end_s - begin_s))]
    at = [moment + 1 - (begin_s if zero_s is None else zero_s) for moment in moments]
    parts = [fair(record, limit, WEIGHTS, moment, moment + 1) for moment in moments]
    for tenant, colour in COLOURS.items():
        served = [rate(record.served[tenant], moment, moment + 1) for moment in moments]
        axes.plot(at, served, color=colour, linewidth=1.2, label=tenant)
        axes.plot(at, [part[tenant] for part in parts], color=colour, linewidth=0.8, linestyle="--")
    axes.plot(at, [rate(record.all_served(), moment, moment + 1) for moment in moments], color="black", label="all")
    axes.axhline(limit, color="black", linewidth=0.6, linestyle=":")
    axes.set_ylim(0, 1.5 * limit)


if __name__ == "__main__":
    main()
