"""Our own renderer: pictures of dashboards, from whatever Prometheus has said."""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import draw
import pytest
import scale
from hypothesis import given
from hypothesis import strategies as st

BOARDS = sorted((Path(__file__).parents[3] / "deploy/grafana/dashboards").glob("*.json"))
SPAN = draw.Span(0, 600, 5)
SVG = "{http://www.w3.org/2000/svg}"
UNITS = ("s", "bytes", "percentunit", "reqps", "ops", "short")


def series(name: str = "a", value: float = 1.0, **labels: str) -> draw.Series:
    return draw.Series(name, labels, [(at, value + at / 600) for at in range(0, 601, 5)])


def panel(kind: str = "timeseries", width: int = 8, height: int = 8) -> Mapping[str, Any]:
    place = {"x": 0, "y": 0, "w": width, "h": height}
    return {"title": "A title", "type": kind, "gridPos": place, "fieldConfig": {"defaults": {"unit": "short"}}}


def drawn(found: list[draw.Series], **changes: Any) -> ET.Element:
    board = {"title": "Board", "description": "What it is.", "panels": [panel(**changes)]}
    return ET.fromstring(draw.board(board, {0: found}, SPAN, "of a test"))  # noqa: S314 - our own


def words(picture: ET.Element) -> list[str]:
    return [one.text or "" for one in picture.iter(f"{SVG}text")]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_board_can_be_drawn(path: Path) -> None:
    board = json.loads(path.read_text())
    found = {at: [series(f"{at}", node="a")] for at, one in enumerate(board["panels"]) if one.get("targets")}
    text = draw.board(board, found, SPAN, "of a test")
    picture = ET.fromstring(text)  # noqa: S314 - our own
    said = words(picture)
    assert board["title"] in said
    assert "no data" not in said
    assert len([one for one in picture.iter(f"{SVG}rect") if one.get("class") == "card"]) == len(found)
    assert {one["title"] for one in board["panels"] if one["type"] == "row"} <= set(said)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_leave_no_hole(path: Path) -> None:
    lines: dict[int, list[Any]] = {}
    for one in json.loads(path.read_text())["panels"]:
        lines.setdefault(one["gridPos"]["y"], []).append(one["gridPos"])
    for places in lines.values():
        assert sum(place["w"] for place in places) == 24
        assert len({place["h"] for place in places}) == 1


@pytest.mark.parametrize("kind", ["timeseries", "stat", "table"])
@given(st.text(max_size=200), st.floats(), st.floats())
def test_whatever_comes_of_a_query_is_drawn_within_the_picture(kind: str, name: str, first: float, last: float) -> None:
    # What XML has no way to write can't come of Prometheus' JSON as a label of ours; a page may hold anything else.
    name = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", name)
    points = [(0.0, first), (5.0, last), (300.0, 1.0)]
    picture = drawn([draw.Series(name, {"key": name}, points), series("<b>&\"'")], kind=kind)
    for path in picture.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", "")):
            assert -1 <= float(x) <= draw.WIDTH
            assert -1 <= float(y) <= 400


def test_a_gap_is_a_gap() -> None:
    points = [(0.0, 1.0), (5.0, 2.0), (100.0, 1.0), (105.0, 3.0), (400.0, math.nan), (405.0, 1.0)]
    lines = [one for one in drawn([draw.Series("a", {}, points)]).iter(f"{SVG}path") if one.get("class") == "line c0"]
    assert len([one for one in lines if "L" in one.get("d", "")]) == 2


def test_many_series_have_a_legend_that_ends() -> None:
    said = words(drawn([series(f"a rather long name of a series {at}", at) for at in range(40)]))
    shown = len([one for one in said if one.startswith("a rather")])
    assert 2 <= shown <= 6
    assert f"and {40 - shown} more" in said


def test_a_panel_without_data_says_so() -> None:
    assert "no data" in words(drawn([]))
    assert "no data" in words(drawn([draw.Series("a", {}, [(0.0, math.nan)])]))


def test_a_table_has_the_largest_first() -> None:
    said = words(drawn([series(value=value, service=f"s{value}") for value in (1, 3, 2)], kind="table", width=24))
    assert [one for one in said if one.startswith("s")] == ["service", "s3", "s2", "s1"]


def test_a_table_has_what_is_there_at_the_end_alone() -> None:
    gone = draw.Series("b", {"node": "b"}, [(at, 9.0) for at in range(0, 301, 5)])
    said = words(drawn([series("a", node="a"), gone], kind="table"))
    assert "a" in said
    assert "b" not in said
    assert "no data" in words(drawn([gone], kind="table"))


def test_the_size_is_bounded_by_what_can_be_seen() -> None:
    flat = draw.Series("a", {}, [(at / 10, 1.0) for at in range(6000)])
    board = {"title": "Board", "description": "", "panels": [panel()]}
    assert len(draw.board(board, {0: [flat]}, SPAN, "")) < 5000


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        (0.0123, "s", "12.3 ms"),
        (0, "s", "0"),
        (3600, "s", "1 h"),
        (-90, "s", "-1.5 min"),
        (1536, "bytes", "1.5 KiB"),
        (0.5, "percentunit", "50%"),
        (12.34, "reqps", "12.3 req/s"),
        (1234, "short", "1,234"),
        (45_600, "short", "45.6k"),
        (math.inf, "short", "∞"),
        (math.nan, "short", "–"),
        (-0.001, "short", "0"),
    ],
)
def test_values_are_as_people_read_them(value: float, unit: str, wanted: str) -> None:
    assert scale.text(value, unit) == wanted


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.sampled_from(UNITS))
def test_an_axis_includes_what_is_shown_in_a_few_steps(one: float, other: float, unit: str) -> None:
    low, high = sorted((one, other))
    ticks = scale.axis([low, high], unit)
    room = max(abs(low), abs(high)) * 1e-6 + 1e-12
    assert ticks[0] <= low + room
    assert ticks[-1] >= high - room
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
