"""Dashboards in a few words: a board has variables and rows, a row has panels, a panel has queries."""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG: Final = "meshwarden"
_COLUMNS: Final = 24


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its series are called: "{{tenant}}"."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel.

    Attributes:
        title: says what is seen.
        queries: of the same unit.
        unit: of Grafana's: "reqps", "s", "bytes", "percentunit", "short".
        kind: a line for each series, one number, or a row for each.
        width: of 24 columns.
        about: for the one who does not know.
        exemplars: whether points lead to traces.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["lines", "number", "rows"] = "lines"
    width: int = 8
    about: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice of the reader's among the values of a label."""

    name: str
    metric: str
    label: str


@dataclass(frozen=True)
class Board:
    """A dashboard; `uid` is its file's name too."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    def to_json(self) -> str:
        """Returns what Grafana takes."""
        made = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.about)
            .tags([TAG])
            .editable()
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .link(
                dashboard.DashboardLink("Meshwarden")
                .tags([TAG])
                .as_dropdown(True)
                .type(model.DashboardLinkType.DASHBOARDS)
            )
            .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
        )
        for variable in self.variables:
            made = made.with_variable(_variable(variable))
        for row in self.rows:
            made = made.with_row(dashboard.Row(row.title))
            for panel in row.panels:
                made = made.with_panel(_panel(panel))
        return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"

    def queries(self) -> list[tuple[str, str]]:
        """Every query, with the title of its panel."""
        return [(panel.title, query.expr) for row in self.rows for panel in row.panels for query in panel.queries]


def _variable(variable: Variable) -> Any:
    return (
        dashboard.QueryVariable(variable.name)
        .datasource(DATASOURCE)
        .query(f"label_values({variable.metric}, {variable.label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> Any:
    made: Any
    if panel.kind == "lines":
        legend = common.VizLegendOptions().display_mode(common_model.LegendDisplayMode.LIST).show_legend(True)
        made = timeseries.Panel().fill_opacity(8).legend(legend.placement(common_model.LegendPlacement.BOTTOM))
    elif panel.kind == "number":
        made = stat.Panel()
    else:
        made = table.Panel()
    made = made.title(panel.title).unit(panel.unit).datasource(DATASOURCE).span(panel.width)
    made = made.height(4 if panel.kind == "number" else 8)
    if panel.about:
        made = made.description(panel.about)
    for number, query in enumerate(panel.queries):
        made = made.with_target(_target(panel, query, chr(ord("A") + number)))
    return made


def _target(panel: Panel, query: Query, ref: str) -> Any:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref).legend_format(query.legend or "__auto")
    if panel.kind == "rows":
        return target.instant().format(prometheus_format())
    return target.instant() if panel.kind == "number" else target.range().exemplar(panel.exemplars)


def prometheus_format() -> Any:
    """The format of a table."""
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    return PromQueryFormat.TABLE
