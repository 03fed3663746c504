"""Prometheus rules of service level objectives: multi-window, multi-burn-rate alerts. Pure.

A burn rate of 1 spends the error budget exactly over the objective's window. An alert fires while a long and a short
window both burn faster than a factor: the long one says that it matters, the short one that it still goes on. Counts of
bad and of all calls are recorded for each window and divided last, so that no ratio is ever averaged.

    factor   long   short   severity    of the budget by then (window of 30 days)
    14.4     1h     5m      page        2 %
    6        6h     30m     page        5 %
    3        1d     2h      ticket      10 %
    1        3d     6h      ticket      10 %

For another window than 30 days all are as much longer or shorter, and so they are for a `scale`: with 60 everything
happens sixty times as fast, as one wants it in a demonstration or a test.

Source: Google, The Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from meshwarden.v1.resources_pb2 import SLO, Service, ServiceSpec, SLOSpec

RUNBOOKS: Final = "docs/runbooks/"
_PERIOD_S: Final = 30 * 86400
_MIN_CALLS: Final = 100
# What two failures alone would trip is too few calls.
_MIN_BAD: Final = 2
# Long enough that a quiet hour is no fault.
_ABSENT_S: Final = 6 * 3600
# What a policy refused is no call that the service could have taken.
_COUNTED: Final = "ok|client_error|server_error"
Rules = dict[str, Any]


@dataclass(frozen=True)
class Burn:
    """A pair of windows, in seconds for an objective of 30 days."""

    factor: float
    long_s: float
    short_s: float
    severity: str


BURNS: Final = (
    Burn(14.4, 3600, 300, "page"),
    Burn(6, 6 * 3600, 1800, "page"),
    Burn(3, 86400, 7200, "ticket"),
    Burn(1, 3 * 86400, 6 * 3600, "ticket"),
)
ALERTS: Final = {"page": "SLOBurnFast", "ticket": "SLOBurnSlow"}
ABSENT: Final = "SLONoData"


def rules(slos: Iterable[tuple[SLO, Service]], scale: float = 1.0, runbooks: str = RUNBOOKS) -> Rules:
    """Returns a Prometheus rule file, to be written as YAML.

    Args:
        slos: each with its service.
        scale: how many times as fast everything happens.
        runbooks: where the runbooks are: `<runbooks><Alert>.md`.
    """
    groups = []
    for slo, service in sorted(slos, key=lambda pair: name_of(pair[0])):
        made = _Rules(slo, service, scale, runbooks)
        groups.append(
            {"name": f"slo {name_of(slo)}", "interval": made.interval, "rules": [*made.recorded(), *made.alerts()]}
        )
        groups.append({"name": f"slo {name_of(slo)} budget", "interval": made.long_interval, "rules": [*made.budget()]})
    return {"groups": groups}


def name_of(slo: SLO) -> str:
    """The full name, `<tenant>/<name>`: the label `slo`."""
    return f"{slo.metadata.tenant}/{slo.metadata.name}"


def min_calls(slo: SLO, burn: Burn) -> int:
    """How many calls the long window must hold before it counts."""
    if slo.spec.min_calls:
        return slo.spec.min_calls
    return max(_MIN_CALLS, math.floor(_MIN_BAD / (burn.factor * budget(slo))) + 1)


def budget(slo: SLO) -> float:
    """The share of calls that may be bad."""
    return 1 - slo.spec.objective / 100


class _Rules:
    """The rules of one objective."""

    def __init__(self, slo: SLO, service: Service, scale: float, runbooks: str) -> None:
        self._slo, self._service, self._runbooks = slo, service, runbooks
        window_s = slo.spec.window.ToNanoseconds() / 1e9 if slo.spec.HasField("window") else _PERIOD_S
        self._window_s = window_s / scale
        self._stretch = window_s / _PERIOD_S / scale
        self._labels = {"slo": name_of(slo), "tenant": slo.metadata.tenant, "service": slo.spec.service}
        # What can't be: a share of bad calls above all of them.
        self._burns = [burn for burn in BURNS if burn.factor * budget(slo) < 1]
        shortest_s = min(burn.short_s for burn in self._burns) * self._stretch
        self.interval, self.long_interval = _duration(shortest_s / 10), _duration(shortest_s)

    def recorded(self) -> Iterable[Rules]:
        """The recording rules."""
        for burn in self._burns:
            for span, window_s in (("long", burn.long_s), ("short", burn.short_s)):
                labels = {**self._labels, "burn": f"{burn.factor:g}", "span": span}
                yield from self._counts(_duration(window_s * self._stretch), labels)

    def _counts(self, window: str, labels: dict[str, str]) -> Iterable[Rules]:
        yield self._record("slo:events:increase", self._events(window), labels)
        yield self._record("slo:errors:increase", self._errors(window), labels)
        at = _selector(labels)
        burnt = f"slo:errors:increase{at} / slo:events:increase{at} / {_number(budget(self._slo))}"
        yield self._record("slo:burn:rate", burnt, labels)

    def budget(self) -> Iterable[Rules]:
        """What is left of the budget: over the whole window the counts of the shortest one are added up."""
        yield self._record("slo:objective:ratio", f"vector({_number(self._slo.spec.objective / 100)})", self._labels)
        shortest = min(burn.short_s for burn in self._burns) * self._stretch
        first = min(self._burns, key=lambda burn: burn.short_s)
        at = _selector({"slo": self._labels["slo"], "burn": f"{first.factor:g}", "span": "short"})
        window = _duration(self._window_s)
        for name in ("errors", "events"):
            # Of the averages of both counts, over the same samples: no average of a ratio.
            whole = f"avg_over_time(slo:{name}:increase{at}[{window}]) * {_number(self._window_s / shortest)}"
            yield self._record(f"slo:{name}:period", f"sum without (burn, span) ({whole})", self._labels)
        left = (
            f"1 - slo:errors:period{_selector({'slo': self._labels['slo']})} / "
            f"slo:events:period{_selector({'slo': self._labels['slo']})} / {_number(budget(self._slo))}"
        )
        yield self._record("slo:budget_left:ratio", left, self._labels)

    def alerts(self) -> Iterable[Rules]:
        """The alert rules."""
        about = "calls failed" if self._slo.spec.WhichOneof("indicator") == "availability" else "calls were slow"
        for severity, alert in ALERTS.items():
            burns = [burn for burn in self._burns if burn.severity == severity]
            if not burns:
                continue
            either = "\nor ignoring (burn, span)\n".join(f"(\n{self._trips(burn)}\n)" for burn in burns)
            annotations = {
                "summary": f"{self._labels['slo']} spends its error budget {{{{ $value | humanize }}}} times too fast",
                "description": f"Too many {about} for an objective of {self._slo.spec.objective:g} %.",
            }
            yield self._alert(alert, f"max without (burn, span) (\n{either}\n)", severity, annotations)
        annotations = {
            "summary": f"Nothing is known of {self._labels['slo']}",
            "description": f"No call of {self._labels['service']} was counted for long: is it called, is it scraped?",
        }
        yield {
            **self._alert(ABSENT, f"absent({self._metric()})", "ticket", annotations),
            "for": _duration(_ABSENT_S * self._stretch),
        }

    def _trips(self, burn: Burn) -> str:
        labels = {"slo": self._labels["slo"], "burn": f"{burn.factor:g}"}
        long, short = _selector({**labels, "span": "long"}), _selector({**labels, "span": "short"})
        return (
            f"slo:burn:rate{long} > {burn.factor:g}\n"
            f"and ignoring (span) slo:burn:rate{short} > {burn.factor:g}\n"
            f"and slo:events:increase{long} >= {min_calls(self._slo, burn)}"
        )

    def _record(self, name: str, expression: str, labels: dict[str, str]) -> Rules:
        return {"record": name, "expr": expression, "labels": labels}

    def _alert(self, name: str, expression: str, severity: str, annotations: dict[str, str]) -> Rules:
        return {
            "alert": name,
            "expr": expression,
            "labels": {**self._labels, "severity": severity},
            "annotations": {**annotations, "runbook_url": f"{self._runbooks}{name}.md"},
        }

    # -- what the calls are

    @property
    def _is_latency(self) -> bool:
        return self._slo.spec.WhichOneof("indicator") == "latency"

    def _metric(self, **more: str) -> str:
        """The series of all calls that count, each with further labels."""
        spec, by_caller = self._slo.spec, self._slo.spec.side != SLOSpec.SERVICE
        prefix = "mesh_" if self._is_latency else ""
        labels = {
            f"{prefix}destination_tenant": self._slo.metadata.tenant,
            f"{prefix}destination_service": spec.service,
        }
        if spec.calling_tenant:
            labels[f"{prefix}source_tenant"] = spec.calling_tenant
        if not self._is_latency:
            labels["reporter"] = "source" if by_caller else "destination"
            return (
                f"meshwarden_requests_total{_selector({**labels, **more}, status_class='ok|client_error|server_error')}"
            )
        kind = "rpc_{}_call" if self._service.spec.protocol == ServiceSpec.GRPC else "http_{}_request"
        name = f"{kind.format('client' if by_caller else 'server')}_duration_seconds"
        # Only what succeeded has a duration worth an objective.
        part = "bucket" if "le" in more else "count"
        return f"{name}_{part}{_selector({**labels, 'error_type': '', **more})}"

    def _events(self, window: str) -> str:
        return f"sum(increase({self._metric()}[{window}]))"

    def _errors(self, window: str) -> str:
        if self._is_latency:
            bound_s = self._slo.spec.latency.threshold.ToNanoseconds() / 1e9
            return f"{self._events(window)} - sum(increase({self._metric(le=str(bound_s))}[{window}]))"
        matched = self._metric().replace(f'status_class=~"{_COUNTED}"', 'status_class="server_error"')
        # Without a failure there is no series of them, which is none, not nothing.
        return f"sum(increase({matched}[{window}])) or {self._events(window)} * 0"


def _selector(labels: dict[str, str], **patterns: str) -> str:
    exact = [f'{name}="{value}"' for name, value in labels.items()]
    return "{" + ", ".join([*exact, *(f'{name}=~"{value}"' for name, value in patterns.items())]) + "}"


def _duration(seconds: float) -> str:
    """A duration as Prometheus writes it, in whole milliseconds."""
    milliseconds = max(1, round(seconds * 1000))
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def _number(value: float) -> str:
    return f"{value:.10g}"
