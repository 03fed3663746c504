"""Draws dashboards from what a Prometheus has, one SVG each: our own renderer, for where there is no Grafana.

python deploy/grafana/render.py --prometheus http://127.0.0.1:9090 --minutes 10 --out docs/dashboards

The queries are those of the dashboards' JSON, over all tenants, services and objectives.
"""

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import draw

BOARDS: Final = Path(__file__).with_name("dashboards")
_POINTS: Final = 120
_TIMEOUT_S: Final = 30.0


def render(prometheus: str, span: draw.Span, out: Path, note: Callable[[str], str], rate_interval: str) -> list[Path]:
    """Writes a picture for each dashboard; returns those that have a panel without data.

    Args:
        prometheus: its URL.
        span: the time to show.
        out: the directory.
        note: says of what mesh a picture is, by its dashboard's uid.
        rate_interval: stands for Grafana's `$__rate_interval`: four scrapes or more.

    Raises:
        OSError: Prometheus does not answer.
    """
    out.mkdir(parents=True, exist_ok=True)
    lacking = []
    for path in sorted(BOARDS.glob("*.json")):
        said = json.loads(path.read_text())
        found = {
            number: list(_of_panel(prometheus, panel, span, rate_interval))
            for number, panel in enumerate(said["panels"])
            if panel.get("targets")
        }
        picture = out / path.with_suffix(".svg").name
        picture.write_text(draw.board(said, found, span, note(said["uid"])))
        if not all(found.values()):
            lacking.append(picture)
    return lacking


def _of_panel(prometheus: str, panel: Mapping[str, Any], span: draw.Span, rate_interval: str) -> Iterator[draw.Series]:
    for target in panel["targets"]:
        query = re.sub(r"\$\w+", ".*", target["expr"].replace("$__rate_interval", rate_interval))
        for one in _range(prometheus, query, span):
            labels = {key: value for key, value in one["metric"].items() if key != "__name__"}
            points = [(float(at_s), float(value)) for at_s, value in one["values"]]
            yield draw.Series(_legend(target["legendFormat"], labels, panel["title"]), labels, points)


def _range(prometheus: str, query: str, span: draw.Span) -> Sequence[Mapping[str, Any]]:
    values = {"query": query, "start": span.begin_s, "end": span.end_s, "step": span.step_s}
    url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(values)}"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - what the caller named
        result: Sequence[Mapping[str, Any]] = json.load(response)["data"]["result"]
    return result


def _legend(form: str, labels: Mapping[str, str], title: str) -> str:
    if form == "__auto":
        return ", ".join(labels.values()) or title
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), form).strip(" →/") or "none"


def span_of(end_s: float, minutes: float) -> draw.Span:
    """The last minutes before a time, at even steps."""
    step_s = max(1.0, round(minutes * 60 / _POINTS))
    return draw.Span(end_s - minutes * 60, end_s, step_s)


def main() -> None:
    """Reads the command line and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=60.0, help="how much to show (default: %(default)s)")
    parser.add_argument("--rate-interval", default="1m", help="for $__rate_interval (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("dashboards"), help="where to (default: %(default)s)")
    said = parser.parse_args()
    # The clock of this machine, as Prometheus' page has it.
    span = span_of(time.time(), said.minutes)  # noqa: TID251
    note = f"{said.minutes:g} minutes of {said.prometheus}"
    for path in render(said.prometheus, span, said.out, lambda _: note, said.rate_interval):
        print(f"{path}: a panel has no data")


if __name__ == "__main__":
    main()
