"""The committed dashboards: what Grafana will take, and queries that Prometheus can read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
BOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    board: dict[str, Any] = json.loads(path.read_text())
    return board


def queries(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_query_can_be_read(path: Path) -> None:
    found = list(queries(load(path)))
    assert found
    for title, query in found:
        plain = re.sub(r"\$\w+", ".*", query.replace("$__rate_interval", "1m"))
        assert promql_parser.parse(plain), title


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_is_whole(path: Path) -> None:
    board = load(path)
    assert board["uid"] == path.stem
    known = {variable["name"] for variable in board["templating"]["list"]}
    used = {name for _, query in queries(board) for name in re.findall(r"\$(\w+)", query)} - {"__rate_interval"}
    assert used <= known - {"datasource"}
    titles = [(panel["title"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_there_is_a_board_for_each_part() -> None:
    parts = ("mesh", "tenant", "service", "node", "identity", "limits", "slo", "cost", "nbmf")
    assert {f"meshwarden-{part}" for part in parts} <= {path.stem for path in BOARDS}


def test_what_is_provisioned_is_what_there_is() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/meshwarden.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    (exemplars,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["name"] == "trace_id"
    assert exemplars["datasourceUid"] in by_uid
    providers = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/meshwarden.yaml").read_text())["providers"]
    assert [provider["type"] for provider in providers] == ["file"]
