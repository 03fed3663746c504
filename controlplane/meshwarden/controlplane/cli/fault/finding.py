"""What `doctor` has found: one cause each, the gravest first."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import click

from meshwarden.controlplane.cli import render

MAX_SHOWN = 12
MAX_SUBJECTS = 4


class Severity(StrEnum):
    """How grave something is; the gravest first."""

    CRITICAL = "critical"
    """Calls fail, or what was decided does not hold."""
    WARNING = "warning"
    """It will fail if nobody acts, or something is lost."""
    NOTICE = "notice"
    """It may be as somebody wants it."""


class Cause(StrEnum):
    """What can be wrong; docs/operations.md has a row for each."""

    CONTROL_PLANE_UNREACHABLE = "control plane unreachable"
    CONTROL_PLANE_SILENT = "control plane silent"
    CONTROL_PLANE_UNTRUSTED = "control plane untrusted"
    OPERATOR_REFUSED = "operator refused"
    OPERATOR_EXPIRED = "operator certificate expired"
    KEY_EXPOSED = "key readable by others"
    AGENT_UNREACHABLE = "agent unreachable"
    AGENT_SILENT = "agent silent"
    CLOCK_SKEWED = "clock skewed"
    DISK_FULL = "disk full"
    DISK_REFUSES = "disk refuses"
    NOT_WRITTEN = "reports not written"
    NOT_AUDITED = "audit log not written"
    AUTHORITY_AWAY = "authority away"
    SECRETS_UNREAD = "secrets unread"
    SETTINGS_OLD = "settings not as in Vault"
    BUNDLE_STALE = "foreign bundle stale"
    EXPIRED = "certificate expired"
    EXPIRING = "certificate near its end"
    NOT_RENEWED = "certificate not renewed"
    NACKED = "configuration refused"
    BEHIND = "configuration not taken"
    FAULTY = "workload faulty"
    UNFIT = "program refused"
    NO_ENDPOINT = "no healthy endpoint"
    DENIED = "calls denied"
    LIMITED = "calls limited"
    AMBIGUOUS = "name ambiguous"
    SPOOL_FULL = "spool full"
    SPOOLING = "telemetry spooling"
    BACKEND_AWAY = "backend away"
    REGION_SILENT = "region silent"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: how grave it is.
        subject: what has it, "node node-a" for one.
        cause: what it is.
        evidence: how one sees that.
        fix: what to do.
    """

    severity: Severity
    subject: str
    cause: Cause
    evidence: str
    fix: str


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first, each cause of a subject once; what has all but its subject in common is one finding."""
    together: dict[tuple[Cause, str], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.cause, finding.evidence), []).append(finding)
    ranks = list(Severity)
    merged = [_merged(same) for same in together.values()]
    return sorted(merged, key=lambda finding: ranks.index(finding.severity))


def _merged(same: Sequence[Finding]) -> Finding:
    return replace(same[0], subject=listed(list(dict.fromkeys(finding.subject for finding in same))))


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - MAX_SUBJECTS} more" if len(names) > MAX_SUBJECTS else ""
    return ", ".join(names[:MAX_SUBJECTS]) + more


def show(findings: Sequence[Finding], output: str) -> None:
    """Prints findings: a screen for people, a row each for pipes, data for programs."""
    if output != "table":
        data: list[dict[str, Any]] = [
            {key: str(value) for key, value in asdict(finding).items()} for finding in findings
        ]
        render.data(data, output)
    elif sys.stdout.isatty():
        for finding in findings[:MAX_SHOWN]:
            _block(finding)
        if len(findings) > MAX_SHOWN:
            click.echo(f"… and {len(findings) - MAX_SHOWN} more: meshwarden doctor -o json")
    else:
        columns = ("SEVERITY", "SUBJECT", "CAUSE", "EVIDENCE", "FIX")
        render.table(columns, [tuple(asdict(finding).values()) for finding in findings])


def _block(finding: Finding) -> None:
    colour = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.NOTICE: "cyan"}[finding.severity]
    head = click.style(f"{finding.severity:<9}", fg=colour, bold=True)
    click.echo(f"{head} {render.plain(finding.subject)}: {click.style(finding.cause, bold=True)}")
    if finding.evidence:
        click.echo(f"          {render.plain(finding.evidence)}")
    click.echo(f"          fix: {render.plain(finding.fix)}")
