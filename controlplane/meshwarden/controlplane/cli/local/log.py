"""`meshwarden logs`: one log as it is, or several merged by time with the source of each line."""

import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import Path

import click

from meshwarden.controlplane.cli import render
from meshwarden.controlplane.cli.failure import NotFound
from meshwarden.controlplane.local import context
from meshwarden.controlplane.local.logs import Line, Running, Tail, merged

POLL_S = 0.25
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")


def _trace_id(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _TRACE_ID.fullmatch(value):
        raise click.BadParameter("a trace id is 32 hexadecimal digits")
    return value.lower() if value is not None else None


@click.command()
@click.argument("name", required=False)
@click.option("--node", multiple=True, help="The log of this node's agent.")
@click.option(
    "--workload",
    multiple=True,
    help="The logs of this workload: TENANT/INSTANCE as `status` has it, or TENANT/SERVICE for all that run it.",
)
@click.option(
    "--trace", metavar="ID", callback=_trace_id, help="Only lines of this trace; of all logs if none is named."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many last lines.")
def logs(
    name: str | None, node: tuple[str, ...], workload: tuple[str, ...], trace: str | None, follow: bool, lines: int
) -> None:
    """Show the last lines of NAME's log, or of several; without a name, list the logs there are.

    Lines of several logs are merged by time, each after the name of its log.
    """
    _, current = context.get(click.get_current_context().find_root().obj)
    directory = Path(current.state_dir) / "logs"
    known = sorted(path.stem for path in directory.glob("*.log")) if current.state_dir else []
    wanted = _wanted(name, node, workload, known, Running.read(Path(current.state_dir)))
    if not wanted and trace is None:
        for stem in known:
            click.echo(stem)
        return
    with contextlib.ExitStack() as stack:
        tails = [Tail(directory / f"{stem}.log", trace) for stem in dict.fromkeys(wanted or known)]
        for tail in tails:
            stack.callback(tail.close)
        _print(tails, trace, follow, lines)


def _wanted(
    name: str | None, nodes: Sequence[str], workloads: Sequence[str], known: Sequence[str], running: Running
) -> list[str]:
    """The logs that are asked for, each of them one of `known`, so that no name can lead out of the directory."""
    found: list[str] = []
    asked = [("log", name, [name])] if name else []
    asked += [("node", node, [f"agent-{node}"]) for node in nodes]
    asked += [("workload", workload, running.instances(workload)) for workload in workloads]
    for kind, said, names in asked:
        stems = [stem for stem in known if any(stem in running.logs(instance) for instance in names)]
        if not stems:
            raise NotFound(f"no log of {kind} {said!r}" if kind != "log" else f"no log {said!r}", _known(kind, known))
        found += stems
    return found


def _known(kind: str, known: Sequence[str]) -> str:
    """What could have been asked for instead."""
    agent = "agent-"
    if kind == "node":
        known = [stem.removeprefix(agent) for stem in known if stem.startswith(agent)]
    elif kind == "workload":
        known = [stem for stem in known if not stem.startswith((agent, "server"))]
    return f"known: {', '.join(known) or 'none'}"


def _print(tails: Sequence[Tail], trace: str | None, follow: bool, lines: int) -> None:
    width = max((len(tail.name) for tail in tails), default=0) if len(tails) > 1 else 0
    found = merged(tails)
    if not found and trace is not None and not follow:
        click.echo(f"no line is of trace {trace}: `meshwarden trace {trace}` shows its spans", err=True)
    for line in found[len(found) - lines :] if lines else ():
        _echo(line, width)
    while follow:
        for line in merged(tails):
            _echo(line, width)
        if all(tail.is_gone() for tail in tails):
            return
        time.sleep(POLL_S)


def _echo(line: Line, width: int) -> None:
    source = f"{line.source:<{width}}  " if width else ""
    click.echo(f"{source}{render.plain(line.text)}")
