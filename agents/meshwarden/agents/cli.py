"""`meshwarden-agent`: run the daemon, run a program as a workload, ask how the daemon does.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 77 the node is banned, 126 the command cannot be run, 127 there
is no such command.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import grpc

from meshwarden.certs.clock import utc_now
from meshwarden.v1 import workload_service_pb2 as pb
from meshwarden.v1 import workload_service_pb2_grpc as pb_grpc

_DEFAULT_SOCKET: Final = Path("/run/meshwarden/agent.sock")
_TIMEOUT_S: Final = 30.0
_CANNOT_RUN: Final = 126
_NOT_FOUND: Final = 127
_BANNED: Final = 77  # sysexits(3): EX_NOPERM


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="meshwarden")
def main() -> None:
    """The Meshwarden node agent."""


@main.command()
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), required=True, help="The agent's configuration, TOML."
)
def run(config_file: Path) -> None:
    """Run the agent until SIGTERM.

    The configuration says whose node it is and where the control plane is: control_plane, or control_planes of several.
    """
    # `exec` shall start at once, so the daemon's imports are its own.
    import anyio

    from meshwarden.agents import config, log, state
    from meshwarden.agents import run as running
    from meshwarden.agents.identity.node import Banned
    from meshwarden.agents.proof.port import IdentityError

    try:
        loaded = config.load(config_file)
        log.configure(loaded.node)
        with _single_errors():
            anyio.run(running.run, loaded, utc_now, random.SystemRandom())
    except Banned as error:
        _fail(str(error), _BANNED)
    except (config.ConfigError, state.StateTaken, IdentityError, OSError) as error:
        _fail(str(error))


@main.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--socket", type=click.Path(path_type=Path), help="The agent's socket.")
@click.option("--entry", required=True, help="The workload entry: NAME, or TENANT/NAME.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where the program listens; default the entry's."
)
@click.option("--instance", default="", help="A name for this instance; default the entry's with a number.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(socket: Path | None, entry: str, port: int, instance: str, command: Sequence[str]) -> None:
    """Become COMMAND as an instance of a workload entry.

    The identity lasts as long as the process and is its children's too. Signals, terminal and exit code are COMMAND's,
    since it takes this process's place.
    """
    if shutil.which(command[0]) is None:
        _cannot_exec(command[0], None)
    request = pb.RegisterRequest(entry=entry, port=port, instance=instance)
    with _agent(socket) as stub:
        answer = stub.Register(request, timeout=_TIMEOUT_S)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), {**os.environ, **answer.environment})  # noqa: S606 - what exec is for
    except OSError as error:
        _cannot_exec(command[0], error)


@main.command()
@click.option("--socket", type=click.Path(path_type=Path), help="The agent's socket.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="For people or programs.")
def status(socket: Path | None, output: str) -> None:
    """Say how the agent does."""
    with _agent(socket) as stub:
        answer = stub.AgentStatus(pb.AgentStatusRequest(), timeout=_TIMEOUT_S)
    if output == "json":
        from google.protobuf.json_format import MessageToDict

        click.echo(json.dumps(MessageToDict(answer, always_print_fields_with_no_presence=True), indent=2))
        return
    for line in _table(answer, utc_now()):
        click.echo(line)


@main.command()
@click.option("--socket", type=click.Path(path_type=Path), help="The agent's socket.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 3600), default=15.0, help="How long to wait, in s.")
@click.argument("name")
def secret(socket: Path | None, timeout_s: float, name: str) -> None:
    """Write the secret NAME of the calling workload's entry to standard output, and nothing else.

    Who calls is known by the kernel's word: run it below `meshwarden-agent exec`, or as a program that fits one entry.
    """
    reason = "the control plane has not told it yet"
    with _agent(socket) as stub:
        try:
            for answer in stub.Secrets(pb.SecretsRequest(), timeout=timeout_s):
                found = next((one for one in answer.secrets if one.name == name), None)
                if found is not None and found.value:
                    click.echo(found.value, nl=sys.stdout.isatty())
                    return
                names = ", ".join(one.name for one in answer.secrets) or "none"
                reason = (found.error or reason) if found is not None else f"the entry names {names}"
        except grpc.RpcError as error:
            call: Any = error
            if call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
    _fail(f"no secret {name!r} within {timeout_s:g} s: {reason}")


def _table(answer: pb.AgentStatusResponse, now: datetime) -> Iterator[str]:
    link = "connected" if answer.connected else "not connected"
    yield f"node {answer.node}  {link}  revision {answer.revision}  version {answer.version}"
    if answer.last_error:
        yield f"! {answer.last_error}"
    rows = [("WORKLOAD", "PID", "SPIFFE ID", "SVID LEFT", "")]
    for item in answer.workloads:
        left = "none"
        if item.HasField("not_after"):
            seconds = int((item.not_after.ToDatetime(now.tzinfo) - now).total_seconds())
            left = f"{seconds // 60}m{seconds % 60:02d}s"
        rows.append(
            (item.id, str(item.pid or "-"), item.spiffe_id, left, "shares its user" if item.shares_user else "")
        )
    yield from _columns(rows)
    if answer.envoys:
        yield ""
        rows = [("ENVOY", "PID", "OUTBOUND", "INBOUND", "RESTARTS")]
        rows += [
            (e.name, str(e.pid or "down"), e.outbound or "-", e.inbound or "-", str(e.restarts)) for e in answer.envoys
        ]
        yield from _columns(rows)
    for nack in answer.nacks:
        what = f"{nack.type_url.rpartition('.')[2]} {nack.resource}".rstrip()
        yield f"! {nack.data_plane} refused {what}: {nack.message}"
    for refused in answer.refused:
        times = f", {refused.count} times" if refused.count > 1 else ""
        yield f"! process {refused.pid} of uid {refused.uid} is not {refused.entry}{times}: {refused.reason}"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@contextlib.contextmanager
def _agent(socket: Path | None) -> Iterator[Any]:
    """The agent behind a socket; failures end the program with what to do."""
    path = find_socket(socket)
    refusal = _refusal(path)
    if refusal is not None:
        _fail(
            f"no agent answers at {path} ({refusal}): start one with `meshwarden-agent run --config FILE`, or say the "
            "socket of one that runs with --socket"
        )
    options = [("grpc.enable_http_proxy", 0)]
    try:
        with grpc.insecure_channel(f"unix:{path.absolute()}", options=options) as channel:
            yield pb_grpc.WorkloadServiceStub(channel)
    except grpc.RpcError as error:
        call: Any = error
        if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            _fail(f"the agent at {path} has not answered within {_TIMEOUT_S:g} s: see its log, and start it again")
        _fail(str(call.details()))


def _refusal(path: Path) -> str | None:
    """Why a socket cannot be connected to; None if it can."""
    import socket as sockets

    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.strerror or str(error)
    return None


def find_socket(given: Path | None) -> Path:
    """The agent's socket: as given, of the environment, of the current context, or the system's."""
    if given is not None:
        return given
    said = os.environ.get("MESHWARDEN_AGENT_SOCKET")
    if said:
        return Path(said.removeprefix("unix://").removeprefix("unix:"))
    try:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        contexts = json.loads((home / "meshwarden" / "contexts.json").read_text())
        sockets = contexts["contexts"][contexts["current"]]["agent_sockets"]
        return Path(sockets[0])
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError):  # the last: there is no home
        return _DEFAULT_SOCKET


@contextlib.contextmanager
def _single_errors() -> Iterator[None]:
    """Takes an error out of the task groups around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


def _cannot_exec(command: str, error: OSError | None) -> NoReturn:
    """Ends as a shell does that cannot run a command."""
    if os.path.isdir(command):
        reason = "it is a directory: name the program in it"
    elif os.sep in command and os.path.exists(command):
        reason = f"it is not executable: chmod +x {command}"
        if error is not None and error.errno == errno.ENOENT:
            reason = "the interpreter that its first line names, or its loader, is not there"
        elif error is not None and error.errno == errno.ENOEXEC:
            reason = "it is no program of this machine: a script needs a first line like #!/bin/sh"
        elif error is not None:
            reason = str(error.strerror)
    else:
        where = "there is no such file" if os.sep in command else f"not found on PATH ({os.environ.get('PATH', '')})"
        click.echo(f"Error: {command}: {where}; after -- say the program and its arguments", err=True)
        sys.exit(_NOT_FOUND)
    click.echo(f"Error: {command} cannot be run: {reason}", err=True)
    sys.exit(_CANNOT_RUN)


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
