"""`meshwarden apply`."""

import click
import grpc
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.change.progress import ALL, summary, timeout_option, until_reached
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.files import read_texts
from meshwarden.controlplane.resources.manifest import Located, ManifestFaults, parse_all
from meshwarden.v1.resource_service_pb2 import ApplyRequest, ApplyResponse, Change
from meshwarden.v1.revision_service_pb2 import GetProgressRequest


@click.command()
@click.option("-f", "--file", "files", multiple=True, required=True, metavar="PATH", help='A file, directory or "-".')
@click.option("--dry-run", is_flag=True, help="Check and say what would change, and change nothing.")
@click.option("--reason", default="", help="Why, for the history.")
@click.option("--wait", "waits", is_flag=True, help="Wait until every node has it, as `meshwarden wait` does.")
@timeout_option
@render.output_option
def apply(files: tuple[str, ...], dry_run: bool, reason: str, waits: bool, timeout: float, output: str) -> None:
    """Store manifests, all or none. Every fault is named by file, line and field."""
    located = read(files)
    with client.connect_current() as mesh:
        with render.progress("applying"):
            answer = send(mesh, located, dry_run, reason)
        _say(answer, dry_run, output)
        if waits and not dry_run:
            with render.progress(f"waiting for revision {answer.revision}"):
                reached = until_reached(mesh, GetProgressRequest(revision=answer.revision), "nodes", ALL, timeout)
            click.echo(summary(reached), err=True)


def _say(answer: ApplyResponse, dry_run: bool, output: str) -> None:
    if output != "table":
        render.data(render.as_dict(answer), output)
        return
    for change in answer.changes:
        click.echo(f"{Change.Action.Name(change.action).lower()}\t{model.title(change.ref)}")
    click.echo("nothing was changed: a dry run" if dry_run else f"revision {answer.revision}", err=True)
    if answer.trace_id:
        click.echo(f"trace {answer.trace_id}", err=True)


def read(files: tuple[str, ...]) -> list[Located]:
    """Reads manifests.

    Raises:
        Failure: with every fault by file, line and field.
    """
    try:
        return parse_all(read_texts(files))
    except ManifestFaults as faults:
        has_lines = any(fault.line for fault in faults.faults)
        fix = "correct the lines above" if has_lines else "name manifests that are there and can be read"
        raise Failure(str(faults), f"{fix}; nothing was changed") from None


def send(mesh: client.Client, located: list[Located], dry_run: bool, reason: str = "") -> ApplyResponse:
    """Applies a batch.

    Raises:
        Failure: it is refused for its content; with every fault by file, line and field.
    """
    request = ApplyRequest(resources=[item.resource for item in located], dry_run=dry_run, reason=reason)
    try:
        answer: ApplyResponse = mesh.resource.Apply(request, timeout=client.TIMEOUT_S)
        faults = [(fault.field, fault.message) for fault in answer.faults]
    except grpc.RpcError as error:
        faults = _all_faults(mesh, request, _faults_of(error))
        if not faults:
            raise
    if faults:
        lines = "\n".join(_line(field, text, located) for field, text in faults)
        raise Failure(lines, "correct the lines above; nothing was changed")
    return answer


def _faults_of(error: grpc.RpcError) -> list[tuple[str, str]]:
    """The faults that a refusal brings: [(field, why)]; empty if it is refused for something else."""
    status = rpc_status.from_call(error)
    found = []
    for detail in status.details if status is not None else ():
        bad = BadRequest()
        if detail.Unpack(bad):
            found += [(fault.field, fault.description) for fault in bad.field_violations]
    return found


def _all_faults(mesh: client.Client, request: ApplyRequest, told: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Asks for what a refusal had no room for: its trailers hold some thirty faults, the answer to a dry run all."""
    if not told or told[-1][0]:
        return told
    again = ApplyRequest(resources=request.resources, dry_run=True)
    answer: ApplyResponse = mesh.resource.Apply(again, timeout=client.TIMEOUT_S)
    return [(fault.field, fault.message) for fault in answer.faults] or told


def _line(path: str, text: str, located: list[Located]) -> str:
    head, _, field = path.partition("].")
    number = head.removeprefix("resources[").removesuffix("]")
    if not head.startswith("resources[") or not number.isdecimal() or int(number) >= len(located):
        return f"{path}: {render.plain(text)}" if path else render.plain(text)
    item = located[int(number)]
    return f"{item.source}:{item.line_of(field)}: {field}: {render.plain(text)}"
