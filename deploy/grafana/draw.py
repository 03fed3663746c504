"""Draws a dashboard as one SVG, from its JSON and what its queries returned: for pages that show no Grafana.

It reads in light and in dark. All that comes from a query is escaped.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

import scale

WIDTH: Final = 1200
_COLUMN: Final = WIDTH / 24
_UNIT: Final = 27
_GAP: Final = 6
_HEAD: Final = 58
_LEGEND_LINE: Final = 15
_LETTER: Final = 6.5
_LEGEND_LINES: Final = 3
# Apart for those who do not see red and green, too; lighter in the dark.
# Source: Okabe and Ito, "Color Universal Design".
_LIGHT: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a8a00", "#882255")
_DARK: Final = ("#4ea8de", "#f5b942", "#2fc99b", "#ff8552", "#e6a3c8", "#a5d8f5", "#cfcf5b", "#d97aa6")
_KNOWN: Final = {
    "ok": 2,
    "client_error": 0,
    "server_error": 3,
    "denied": 1,
    "limited": 4,
    "hot": 3,
    "warm": 1,
    "cold": 0,
}


@dataclass(frozen=True)
class Series:
    """What a query returned of one series.

    Attributes:
        name: as the legend has it.
        labels: all of them.
        points: (seconds, value), in order; a gap is a time without a point.
    """

    name: str
    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Span:
    """The time that is shown, in seconds since 1970, and how far apart points are."""

    begin_s: float
    end_s: float
    step_s: float


@dataclass
class _Box:
    x: float
    y: float
    width: float
    height: float
    out: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, said: str, style: str = "", anchor: str = "start") -> None:
        """Writes, from a place within the box."""
        place = f'x="{self.x + x:.0f}" y="{self.y + y:.0f}"'
        ends = f' text-anchor="{anchor}"' if anchor != "start" else ""
        kind = f' class="{style}"' if style else ""
        self.out.append(f"<text {place}{kind}{ends}>{escape(said)}</text>")


def board(said: Mapping[str, Any], found: Mapping[int, Sequence[Series]], span: Span, note: str) -> str:
    """Returns a picture.

    Args:
        said: the dashboard, as Grafana has it.
        found: what its panels' queries returned, {number of the panel in it: series}.
        span: the time of it.
        note: of what mesh it is.
    """
    panels = said["panels"]
    bottom = max(_bottom(panel) for panel in panels) * _UNIT + _HEAD + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" role="img" '
        f"aria-label={quoteattr(said['title'])}>",
        f"<style>{_style()}</style>",
        f'<rect class="page" width="{WIDTH}" height="{bottom}" rx="8"/>',
        f'<text class="title" x="14" y="27">{escape(said["title"])}</text>',
        f'<text class="soft" x="14" y="46">{escape(said["description"])}</text>',
        f'<text class="soft" x="{WIDTH - 14}" y="27" text-anchor="end">{escape(note)}</text>',
    ]
    for number, panel in enumerate(panels):
        place = panel["gridPos"]
        box = _Box(
            place["x"] * _COLUMN + _GAP,
            place["y"] * _UNIT + _HEAD + _GAP / 2,
            place["w"] * _COLUMN - _GAP - (_GAP if place["x"] + place["w"] == 24 else 0),
            place["h"] * _UNIT - _GAP,
        )
        if panel["type"] == "row":
            box.text(4, 17, panel["title"], "row")
        else:
            _panel(box, panel, list(found.get(number, ())), span)
        out += box.out
    return "\n".join([*out, "</svg>\n"])


def _bottom(panel: Mapping[str, Any]) -> int:
    return int(panel["gridPos"]["y"] + panel["gridPos"]["h"])


def _panel(box: _Box, panel: Mapping[str, Any], series: Sequence[Series], span: Span) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    place = f'x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}"'
    box.out.append(f'<rect class="card" {place} rx="5"/>')
    box.text(10, 18, _cut(panel["title"], box.width - 20, 6.6), "name")
    alive = [one for one in series if any(math.isfinite(value) for _, value in one.points)]
    if panel["type"] == "table":  # it says what is so now
        alive = [one for one in alive if one.points[-1][0] >= span.end_s - span.step_s]
    if not alive:
        box.text(box.width / 2, box.height / 2 + 6, "no data", "soft", "middle")
    elif panel["type"] == "stat":
        _number(box, alive, unit, span)
    elif panel["type"] == "table":
        _rows(box, alive, unit)
    else:
        _lines(box, alive, unit, span)


# -- one number


def _number(box: _Box, series: Sequence[Series], unit: str, span: Span) -> None:
    if len(series) == 1:
        plot = _Box(box.x + 1, box.y + box.height * 0.72, box.width - 2, box.height * 0.26)
        values = [value for _, value in series[0].points if math.isfinite(value)]
        box.out += _curve(plot, series[0], [min(0.0, *values), max(values) * 1.05 or 1.0], span, 0, True)
    width = box.width / len(series)
    for at, one in enumerate(series):
        middle = width * (at + 0.5)
        last = next(value for _, value in reversed(one.points) if math.isfinite(value))
        box.text(middle, 58, scale.text(last, unit), "number", "middle")
        if len(series) > 1:
            box.text(middle, 82, _cut(one.name, width - 8), "key", "middle")


# -- a row for each series


def _rows(box: _Box, series: Sequence[Series], unit: str) -> None:
    rows = sorted(series, key=lambda one: -one.points[-1][1])
    keys = sorted({key for one in rows for key in one.labels})
    width = (box.width - 24) / (len(keys) + 1)
    for at, title in enumerate([*keys, "value"]):
        box.text(12 + at * width, 38, title.replace("_", " "), "key")
    for line, one in enumerate(rows[: int((box.height - 46) // 17)]):
        y = 56 + line * 17
        box.out.append(f'<path class="grid" d="M{box.x + 10:.0f} {box.y + y - 13:.0f}h{box.width - 20:.0f}"/>')
        for at, key in enumerate(keys):
            box.text(12 + at * width, y, _cut(one.labels.get(key, ""), width - 8))
        box.text(12 + len(keys) * width, y, scale.text(one.points[-1][1], unit))


# -- a line for each series


def _lines(box: _Box, series: Sequence[Series], unit: str, span: Span) -> None:
    ordered = sorted(series, key=lambda one: -max(value for _, value in one.points if math.isfinite(value)))
    legends, colours = list(_legends(ordered, box.width - 38)), list(_colours(ordered))
    bottom = 26 + _LEGEND_LINE * (max((line for line, *_ in legends), default=-1) + 1)
    values = [value for one in series for _, value in one.points if math.isfinite(value)]
    ticks = scale.axis(values, unit)
    labels = [scale.text(tick, unit) for tick in ticks]
    left = 16 + max(map(_wide, labels))
    plot = _Box(box.x + left, box.y + 30, box.width - left - 12, box.height - 30 - bottom)
    for tick, label in zip(ticks, labels, strict=True):
        y = plot.y + plot.height * (1 - (tick - ticks[0]) / (ticks[-1] - ticks[0]))
        plot.out.append(f'<path class="grid" d="M{plot.x:.0f} {y:.1f}h{plot.width:.0f}"/>')
        box.text(left - 6, y - box.y + 4, label, "key", "end")
    _minutes(plot, span)
    for at, one in reversed(list(enumerate(ordered))):
        plot.out += _curve(plot, one, [ticks[0], ticks[-1]], span, colours[at], len(ordered) < 4)
    box.out += plot.out
    for line, x, at, name in legends:
        y = box.height - bottom + 30 + line * _LEGEND_LINE
        if at >= 0:
            mark = f"M{box.x + 10 + x:.0f} {box.y + y - 4:.0f}h12"
            box.out.append(f'<path class="line c{colours[at]}" d="{mark}"/>')
        box.text(26 + x, y, name, "key")


def _minutes(plot: _Box, span: Span) -> None:
    whole = span.end_s - span.begin_s
    every = 60.0 * max(1, math.ceil(whole / 60 / max(1, plot.width // 75)))
    for at in range(int(whole // every) + 1):
        x = plot.width * (1 - at * every / whole)
        if at:
            plot.out.append(f'<path class="grid" d="M{plot.x + x:.0f} {plot.y:.0f}v{plot.height:.0f}"/>')
        name = f"−{at * every / 60:.0f} min" if at else "now"
        plot.text(x, plot.height + 13, name, "key", "middle" if at and x > 20 else "end" if not at else "start")


def _legends(series: Sequence[Series], width: float) -> Iterator[tuple[int, float, int, str]]:
    """Where names go: (line, x, number of the series or -1, name)."""
    line, x = 0, 0.0
    for at, one in enumerate(series):
        name = _cut(one.name, width / 2)
        needed = 32 + _wide(name)
        rest = f"and {len(series) - at} more"
        if x and x + needed > width:
            line, x = line + 1, 0.0
        # On the last line there is room for the words that end it.
        is_tight = line == _LEGEND_LINES - 1 and x + needed + 32 + _wide(rest) > width and at < len(series) - 1
        if is_tight or line == _LEGEND_LINES:
            yield _LEGEND_LINES - 1, x if line < _LEGEND_LINES else width - _wide(rest), -1, rest
            return
        yield line, x, at, name
        x += needed


def _curve(plot: _Box, one: Series, ends: Sequence[float], span: Span, colour: int, is_filled: bool) -> Iterable[str]:
    low, high = ends[0], ends[-1]
    width, height = span.end_s - span.begin_s, (high - low) or 1.0
    runs: list[list[tuple[float, float]]] = []
    before_s = -math.inf
    for at_s, value in one.points:
        if not math.isfinite(value):
            continue
        x = plot.x + plot.width * (at_s - span.begin_s) / width
        y = plot.y + plot.height * (1 - (min(max(value, low), high) - low) / height)
        if at_s - before_s > 1.5 * span.step_s:
            runs.append([])
        runs[-1].append((round(x, 1), round(y, 1)))
        before_s = at_s
    for run in runs:
        kept = list(_straight(run))
        path = f"M{_at(kept[0])}" + "".join(f"L{_at(point)}" for point in kept[1:])
        if len(kept) == 1:
            path += "h.1"
        elif is_filled:
            base = plot.y + plot.height * (1 - (min(max(0.0, low), high) - low) / height)
            yield f'<path class="fill f{colour}" d="{path}L{_at((kept[-1][0], base))}L{_at((kept[0][0], base))}z"/>'
        yield f'<path class="line c{colour}" d="{path}"/>'


def _straight(run: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The points of a line without those that lie on it anyway."""
    for at, point in enumerate(run):
        if 0 < at < len(run) - 1:
            (x0, y0), (x1, y1) = run[at - 1], run[at + 1]
            on_line = y0 + (y1 - y0) * (point[0] - x0) / ((x1 - x0) or 1)
            if abs(on_line - point[1]) < 0.15:
                continue
        yield point


def _at(point: tuple[float, float]) -> str:
    return " ".join(f"{one:.1f}".removesuffix(".0") for one in point)


def _colours(series: Sequence[Series]) -> Iterator[int]:
    """The colour of each: what means the same everywhere looks the same, others take what is left."""
    known = {_KNOWN[one.name] for one in series if one.name in _KNOWN}
    free = itertools.cycle([at for at in range(len(_LIGHT)) if at not in known])
    for one in series:
        yield _KNOWN[one.name] if one.name in _KNOWN else next(free)


def _cut(name: str, width: float, letter: float = _LETTER) -> str:
    """A name within a width; of a path, its end."""
    if _wide(name, letter) <= width:
        return name
    kept = name
    while kept and _wide(kept, letter) > width - letter:
        kept = kept[1:] if "/" in name else kept[:-1]
    return f"…{kept}" if "/" in name else f"{kept}…"


def _wide(text: str, letter: float = _LETTER) -> float:
    """How wide a text is, more or less: a font is not known here."""
    capitals, thin = sum(map(str.isupper, text)), sum(map(text.count, "ijlt .,:/'|"))
    return letter * (len(text) + 0.3 * capitals - 0.4 * thin)


def _style() -> str:
    def colours(which: Sequence[str]) -> str:
        return "".join(f".c{at}{{stroke:{one}}}.f{at}{{fill:{one}}}" for at, one in enumerate(which))

    return (
        "svg{font:11px system-ui,'DejaVu Sans',sans-serif}text{fill:#24292f}.page{fill:#f4f5f7}"
        ".card{fill:#fff;stroke:#d9dce1}.grid{stroke:#8884;fill:none}.title{font-size:19px;font-weight:600}"
        ".row{font-size:13px;font-weight:600}.name{font-size:12px;font-weight:600}.key{fill:#59636e;font-size:10.5px}"
        ".soft{fill:#59636e;font-size:12px}.number{font-size:30px;font-weight:600}"
        ".line{fill:none;stroke-width:1.5;stroke-linejoin:round}.fill{opacity:.12}"
        f"{colours(_LIGHT)}@media(prefers-color-scheme:dark){{text{{fill:#e6e9ee}}.page{{fill:#111217}}"
        f".card{{fill:#181b1f;stroke:#2c3235}}.key,.soft{{fill:#9fa7b3}}{colours(_DARK)}}}"
    )
