"""The line that a benchmark prints."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # benchmarks are run from the checkout
    return importlib.import_module("benchmarks.result")


def test_the_line_holds_medians_and_their_ratio(result: ModuleType) -> None:
    case = result.Case("push", "push CPU, 20 agents", "a bare stream", "ms")
    for ours, theirs in ((3.0, 1.0), (90.0, 2.0), (4.0, 100.0)):
        case.add(ours, theirs)
    line = case.line()
    assert "\n" not in line
    assert json.loads(line) == {
        "bench": "push",
        "case": "push CPU, 20 agents",
        "ours": 4.0,
        "reference": "a bare stream",
        "theirs": 2.0,
        "ratio": 2.0,
        "better": "lower",
        "unit": "ms",
        "rounds": 3,
    }


def test_the_ratio_is_of_the_medians_not_of_what_is_printed(result: ModuleType) -> None:
    case = result.Case("push", "x", "y", "ms", better="higher")
    case.add(1 / 3, 1 / 7)
    said = json.loads(case.line())
    assert (said["ours"], said["theirs"], said["ratio"], said["better"]) == (0.3333, 0.1429, 2.333, "higher")


@pytest.mark.parametrize("figures", [[], [(0.0, 1.0)], [(1.0, 0.0)], [(-2.0, 1.0)]])
def test_nothing_is_not_compared(result: ModuleType, figures: list[tuple[float, float]]) -> None:
    case = result.Case("push", "x", "y", "ms")
    for pair in figures:
        case.add(*pair)
    with pytest.raises(result.Unmeasurable, match="x: "):
        case.line()
