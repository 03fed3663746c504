"""`meshwarden traces` and `meshwarden trace`: which calls there were of late, and what became of one."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import click
from google.protobuf.timestamp_pb2 import Timestamp

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.insight import skew
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.v1.admin_service_pb2 import (
    GetTraceRequest,
    GetTraceResponse,
    SearchTracesRequest,
    TraceSpan,
    TraceSummary,
)

_BAR: Final = 32
# Deeper ones stand under each other: a terminal has an end.
_MAX_INDENT: Final = 16
_MAX_REVISIONS: Final = 8
_PAGE: Final = 200


@click.command()
@click.option("--tenant", default="", help="Only traces in which this tenant has spans, and those alone.")
@click.option("--service", default="", help="Only traces in which this service has spans, NAME or TENANT/NAME.")
@click.option("--status", type=click.Choice(["any", "error"]), default="any", show_default=True, help="How they ended.")
@click.option("--min-duration", type=SpanOfTime(), default="0s", help="Only traces in which a span took so long, 50ms.")
@click.option("--since", type=SpanOfTime(), default="1h", show_default=True, help="How far back.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many at most.")
@render.output_option
def traces(tenant: str, service: str, status: str, min_duration: float, since: float, limit: int, output: str) -> None:
    """Show recent traces, the newest first."""
    request = SearchTracesRequest(tenant=tenant, service=service, failed=status == "error")
    request.min_duration.FromNanoseconds(int(min_duration * 1e9))
    request.start.FromNanoseconds(int((utc_now().timestamp() - since) * 1e9))
    found: list[TraceSummary] = []
    with client.connect_current() as mesh:
        while True:
            request.page_size = min(_PAGE, limit - len(found))
            answer = mesh.admin.SearchTraces(request, timeout=client.TIMEOUT_S)
            found += answer.traces
            request.page_token = answer.next_page_token
            if not answer.next_page_token or len(found) >= limit:
                break
    if output != "table":
        render.data([render.as_dict(trace) for trace in found], output)
        return
    rows = [
        (
            trace.trace_id,
            trace.start.ToDatetime().isoformat(sep=" ", timespec="milliseconds"),
            render.duration(trace.duration.ToNanoseconds() / 1e9),
            trace.spans,
            trace.errors,
            trace.service,
            f"{trace.name} (incomplete)" if trace.incomplete else trace.name,
        )
        for trace in found
    ]
    render.table(("TRACE", "BEGAN (UTC)", "TOOK", "SPANS", "FAILED", "SERVICE", "NAME"), rows)
    if not found:
        click.echo("none was found: ask for a longer --since, or for less of a span", err=True)
    if request.page_token:
        click.echo("there are more: ask for a longer --limit or a shorter --since", err=True)


@click.command()
@click.argument("trace_id", default="")
@click.option("--revision", type=click.IntRange(1, 2**63 - 1), help="The trace of the change that made this revision.")
@click.option("--tenant", default="", help="Only this tenant's spans.")
@click.option(
    "--clock",
    type=click.Choice(["raw", "adjusted"]),
    default="raw",
    show_default=True,
    help="Whether times are those that programs gave, or those of nodes whose clocks are off are moved.",
)
@render.output_option
def trace(trace_id: str, revision: int | None, tenant: str, clock: str, output: str) -> None:
    """Show the spans of a trace, each below the one that caused it; or how a change came to each node."""
    wanted = trace_id.lower()
    if bool(wanted) == (revision is not None):
        raise click.UsageError("give a trace id, or --revision of a change; `meshwarden traces` lists recent traces")
    if wanted and re.fullmatch(r"[0-9a-f]{32}", wanted) is None:
        raise click.BadParameter("a trace id has 32 hexadecimal digits; `meshwarden traces` lists some")
    request = GetTraceRequest(trace_id=wanted, tenant=tenant, revision=revision or 0)
    with client.connect_current() as mesh:
        answer = mesh.admin.GetTrace(request, timeout=client.TIMEOUT_S)
    offsets = skew.offsets_ns(answer.spans)
    if clock == "adjusted":
        for span in answer.spans:
            span.start.FromNanoseconds(_ns(span.start) + offsets.get(span.node, 0))
    if output == "table":
        _show(answer)
    else:
        render.data(render.as_dict(answer), output)
    for node, offset_ns in offsets.items():
        click.echo(_told(node, offset_ns, clock == "adjusted"), err=True)


def _told(node: str, offset_ns: int, is_adjusted: bool) -> str:
    name = f"node {render.plain(node)}" if node else "the control plane"
    way = "behind" if offset_ns > 0 else "ahead"
    off_s = abs(offset_ns) / 1e9
    off = render.life(off_s) if off_s >= 120 else render.duration(off_s)
    more = "its times are moved here" if is_adjusted else "--clock adjusted moves its times"
    return f"skewed: by this trace the clock of {name} is about {off} {way}; {more}"


def _show(answer: GetTraceResponse) -> None:
    first_ns = min(_ns(span.start) for span in answer.spans)
    total_ns = max(_ns(span.start) + span.duration.ToNanoseconds() for span in answer.spans) - first_ns
    columns = ("SPAN", "SERVICE", "NODE", "BEGAN", "TOOK", "STATUS")
    rows: list[tuple[object, ...]] = []
    for span, depth in tree(answer.spans):
        begun_ns = _ns(span.start) - first_ns
        row: tuple[object, ...] = (
            "  " * min(depth, _MAX_INDENT) + span.name,
            span.service,
            span.node or span.attributes.get("mesh.node", ""),
            f"+{render.duration(begun_ns / 1e9)}" if begun_ns else "0",
            render.duration(span.duration.ToNanoseconds() / 1e9),
            _status(span),
        )
        rows.append((*row, _bar(begun_ns, span.duration.ToNanoseconds(), total_ns)) if sys.stdout.isatty() else row)
    badge = ", INCOMPLETE" if answer.incomplete else ""
    began = datetime.fromtimestamp(first_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    spans = f"{len(answer.spans)} span{'s' if len(answer.spans) > 1 else ''}"
    click.echo(
        f"trace {answer.trace_id}, region {answer.region}, {began}, {render.duration(total_ns / 1e9)}, {spans}{badge}",
        err=True,
    )
    render.table((*columns, "") if sys.stdout.isatty() else columns, rows)
    for span in answer.spans:
        for line in _more(span):
            click.echo(line)
    for revision in _governed(answer.spans):
        click.echo(f"policies\trevision {render.plain(revision)}\tmeshwarden trace --revision {render.plain(revision)}")
    for call in answer.calls:
        click.echo(f"call\t{render.plain(call.service)} {render.plain(call.name)}\tmeshwarden trace {call.trace_id}")
    if answer.omitted:
        click.echo(f"incomplete: {answer.omitted} more spans than one answer holds", err=True)
    elif answer.incomplete:
        click.echo("incomplete: parents are missing: late, lost, forgotten, or not yours to see", err=True)


def _more(span: TraceSpan) -> Iterator[str]:
    """What else there is to say of a span, a line each: what it changed, and what it has to do with."""
    if changes := span.attributes.get("mesh.changes"):
        revision, by = span.attributes.get("mesh.revision", ""), span.attributes.get("mesh.by", "")
        for change in _listed(changes):
            columns = (f"revision {revision}" if revision else "", change, f"by {by}" if by else "")
            yield "\t".join(("change", *(render.plain(text) for text in columns if text)))
    for link in span.links:
        said = "".join(f" {key}={value}" for key, value in sorted(link.attributes.items()))
        yield f"link\t{render.plain(span.name)}\ttrace {link.trace_id} span {link.span_id}{render.plain(said)}"


def _governed(spans: Iterable[TraceSpan]) -> list[str]:
    """The revisions of the policies that calls were made under, as programs say, oldest first; not those made here."""
    said = {span.attributes.get("mesh.revision", "") for span in spans if span.node}
    said -= {span.attributes.get("mesh.revision", "") for span in spans if "mesh.changes" in span.attributes}
    found = [revision for revision in said if re.fullmatch(r"[1-9][0-9]{0,18}", revision)]
    return sorted(found, key=lambda revision: (len(revision), revision))[:_MAX_REVISIONS]


def _listed(text: str) -> list[str]:
    """What an attribute lists, as JSON; or the text, if it is none: programs write what they like."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return [str(item) for item in found] if isinstance(found, list) else [text]


def tree(spans: Sequence[TraceSpan]) -> Iterator[tuple[TraceSpan, int]]:
    """Every span once, each below its parent, with its depth; ids may say anything, even go around in a circle."""
    known = {span.span_id for span in spans}
    children: dict[str, list[TraceSpan]] = {}
    for span in spans:
        children.setdefault(span.parent_span_id if span.parent_span_id in known else "", []).append(span)
    told: set[int] = set()
    # Those at a top first; what is in no tree then is in a circle, and begins somewhere.
    for top in (*children.get("", ()), *spans):
        waiting = [(top, 0)]
        while waiting:
            span, depth = waiting.pop()
            if id(span) in told:
                continue
            told.add(id(span))
            yield span, depth
            waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, ()))]


def _status(span: TraceSpan) -> str:
    missing = ["parent missing"] if span.parent_missing else []
    if span.status != TraceSpan.ERROR:
        return ", ".join(["ok", *missing])
    said = span.attributes.get("rpc.response.status_code") or span.attributes.get("http.response.status_code") or ""
    return ", ".join([" ".join(filter(None, ("failed", said, span.status_message[:80]))), *missing])


def _bar(begun_ns: int, took_ns: int, total_ns: int) -> str:
    """Where in the trace's time a span lies."""
    if total_ns <= 0:
        return ""
    before = min(_BAR - 1, begun_ns * _BAR // total_ns)
    return " " * before + "█" * max(1, min(_BAR - before, round(took_ns * _BAR / total_ns)))


def _ns(stamp: Timestamp) -> int:
    return stamp.ToNanoseconds()
