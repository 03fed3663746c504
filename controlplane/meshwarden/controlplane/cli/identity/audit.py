"""`meshwarden audit`: what was done in the mesh, and by whom."""

import json
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf.json_format import MessageToDict

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.audit import chain, read
from meshwarden.controlplane.audit.port import AuditBroken
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.cli.span_of_time import SpanOfTime
from meshwarden.v1.audit_service_pb2 import AuditEvent, ListEventsRequest, VerifyEventsRequest

_PAGE: Final = 500
_VERIFY_S: Final = 300.0


@click.group()
def audit() -> None:
    """Show what was done, and verify that nothing of it was changed."""


@audit.command("list")
@click.option("--tenant", default="", help="Only what concerns this tenant.")
@click.option("--event", default="", help="Only this event, or with a dot at its end all of a kind: `node.`.")
@click.option("--since", type=SpanOfTime(), default="24h", show_default=True, help="How far back.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many at most.")
@render.output_option
def list_events(tenant: str, event: str, since: float, limit: int, output: str) -> None:
    """Show events, the newest last."""
    request = ListEventsRequest(tenant=tenant, event=event)
    request.start.FromNanoseconds(int((utc_now().timestamp() - since) * 1e9))
    found: list[AuditEvent] = []
    with client.connect_current() as mesh:
        while len(found) < limit:
            request.page_size = min(_PAGE, limit - len(found))
            answer = mesh.audit.ListEvents(request, timeout=client.TIMEOUT_S)
            found += answer.events
            request.before = answer.next_before
            if not answer.next_before:
                break
    found.reverse()
    if output != "table":
        render.data([render.as_dict(one) for one in found], output)
        return
    render.table(("SEQ", "TIME (UTC)", "EVENT", "WHAT"), [_row(one) for one in found])
    if request.before:
        click.echo(f"there may be more before event {request.before}: ask for a longer --limit", err=True)


@audit.command()
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file of an audit log, instead of the control plane's own.",
)
@click.option("--end", metavar="SEQ:HASH", help="With --file: an event that must be in it, as `verify` once said.")
@render.output_option
def verify(path: Path | None, end: str | None, output: str) -> None:
    """Hold the whole chain of events against itself, and its end against what the store has noted.

    Exits with 1 if an event was changed, removed or added. Keep what it says elsewhere: with --end it shows later that
    the file still leads there.
    """
    if end is not None and path is None:
        raise click.UsageError("--end goes with --file: of a control plane's own log the store knows the end")
    answer = _of_file(path, end) if path is not None else _of_mesh()
    if output != "table":
        render.data(answer, output)
    elif not answer.get("fault"):
        click.echo(f"whole\t{answer['seq']} events\tends {answer['seq']}:{answer['hash']}")
        if "anchored_seq" in answer:
            click.echo(f"the store has noted event {answer['anchored_seq']}, at {answer['anchored_time']}", err=True)
    if answer.get("fault"):
        raise Failure(f"the audit log is not whole: {answer['fault']}", "keep the file, and find out who wrote to it")


def _of_mesh() -> dict[str, Any]:
    with client.connect_current() as mesh:
        answer = mesh.audit.VerifyEvents(VerifyEventsRequest(), timeout=_VERIFY_S)
    found = {"fault": answer.fault} if answer.fault else {"seq": answer.seq, "hash": answer.hash}
    if answer.anchored_seq:
        found |= {"anchored_seq": answer.anchored_seq, "anchored_time": answer.anchored_time.ToJsonString()}
    return found


def _of_file(path: Path, end: str | None) -> dict[str, Any]:
    anchor = None
    if end is not None:
        number, colon, digest = end.partition(":")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and colon and len(digest) == 64):
            raise click.BadParameter("write SEQ:HASH, as `meshwarden audit verify` says it", param_hint="--end")
        anchor = chain.Link(int(number), digest)
    try:
        link = read.verify(path, anchor)
    except AuditBroken as error:
        return {"fault": str(error)}
    return {"seq": link.seq, "hash": link.hash}


def _row(event: AuditEvent) -> tuple[object, ...]:
    fields = MessageToDict(event.fields)
    what = " ".join(f"{name}={_text(value)}" for name, value in sorted(fields.items()))
    return event.seq, event.time.ToDatetime().isoformat(sep=" ", timespec="milliseconds"), event.event, what


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value and not any(char.isspace() for char in value):
        return value
    return json.dumps(value, ensure_ascii=False)
