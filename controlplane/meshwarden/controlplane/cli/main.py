"""`meshwarden`: the entry point. Commands are loaded when they are called, so that --help is quick."""

import difflib
import errno
import importlib
import os
import sys
from typing import Any

import click

from meshwarden.controlplane.cli.failure import EXIT_CODES, Failure, NotFound, from_rpc
from meshwarden.controlplane.local.error import LocalError, NoContext

# {command: (module, attribute, help)}: the help stands here so that listing commands loads none of them.
COMMANDS = {
    "up": ("local.up", "up", "Start a mesh on this machine."),
    "down": ("local.down", "down", "Stop it."),
    "server": ("local.server", "server", "Run a control plane."),
    "init": ("change.init", "init", "Write manifests for a service of yours."),
    "apply": ("change.apply", "apply", "Store manifests, all or none."),
    "diff": ("change.diff", "diff", "Say what applying manifests would change."),
    "get": ("change.resource", "get", "Show resources."),
    "delete": ("change.resource", "delete", "Delete resources."),
    "history": ("change.history", "history", "Show what was changed, by whom and why."),
    "rollback": ("change.rollback", "rollback", "Take changes back."),
    "rollout": ("change.rollout", "rollout", "Show, pause, resume and abort rollouts."),
    "wait": ("change.progress", "wait", "Wait until the mesh has a revision."),
    "explain": ("change.explain", "explain", "Say what would become of a call, and why."),
    "suggest": ("change.suggest", "suggest", "Propose policies by the calls that were seen."),
    "graph": ("insight.graph", "graph", "Show who calls whom: rates, errors and latency."),
    "slo": ("insight.slo", "slo", "Make Prometheus rules of service level objectives."),
    "quota": ("insight.quota", "quota", "Show how limits are divided, and why so."),
    "cost": ("insight.cost", "cost", "Show what calls of models cost."),
    "traces": ("insight.trace", "traces", "Show recent traces."),
    "trace": ("insight.trace", "trace", "Show what became of one call."),
    "status": ("status", "status", "Show nodes, workloads, tenants and warnings."),
    "console": ("console", "console", "Log a browser in, to look at the mesh."),
    "proxy": ("fault.proxy", "proxy", "Show what data planes are to have, and have."),
    "doctor": ("fault.doctor", "doctor", "Find what is wrong, and the fix."),
    "logs": ("local.log", "logs", "Show the logs of what `up` runs."),
    "node": ("identity.node", "node", "Show, evict, ban and forget nodes."),
    "token": ("identity.admin", "token", "Make join tokens for nodes."),
    "svid": ("identity.admin", "svid", "Show and renew workload certificates."),
    "identity": ("identity.identity", "identity", "Revoke identities and certificates."),
    "operator": ("identity.operator", "operator", "Say who may operate the mesh."),
    "audit": ("identity.audit", "audit", "Show what was done, and verify it."),
    "login": ("identity.login", "login", "Operate the mesh by a login at Vault, for a while."),
    "bundle": ("identity.bundle", "bundle", "Show and export what proves identities, ours and other trust domains'."),
    "ca": ("identity.ca", "ca", "Show the roots that the mesh trusts, and rotate them."),
    "backup": ("local.backup", "backup", "Copy what a control plane knows to a file."),
    "restore": ("local.backup", "restore", "Make a control plane's state directory of such a file."),
    "way-back": ("way_back", "way_back", "List what the last release would misread."),
    "context": ("local.context", "context", "Choose the mesh to talk to."),
    "completion": ("completion", "completion", "Print shell completion."),
}

# Why a write fails, of whatever file; such errors name none.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a day's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"meshwarden.controlplane.cli.{module}"), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - a fault in the table above
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that was written; one that is nearly right is named in the error."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs as a program; a disk that is full under the output, or under a file, is told in a line as well."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            _give_output_up()
            click.echo(f"error: can't write: {error.strerror}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; a failed call to the mesh becomes a line that one can use."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # What isn't a gRPC error goes on as it is. A command that called nothing never loads grpc.
            if isinstance(error, LocalError):
                raise (NotFound if isinstance(error, NoContext) else Failure)(error.message, error.fix) from None
            grpc = sys.modules.get("grpc")
            if grpc is not None and isinstance(error, grpc.RpcError):
                raise from_rpc(error) from None
            if isinstance(error, OSError) and error.filename:
                raise Failure(f"{error.filename}: {error.strerror}") from None
            raise


def _give_output_up() -> None:
    """Lets what standard output has not taken go nowhere, else the interpreter complains of it once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


@click.command(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--context", "context_name", metavar="NAME", help="The context to use instead of the current one.")
@click.version_option(package_name="meshwarden")
@click.pass_context
def main(ctx: click.Context, context_name: str | None) -> None:
    """Meshwarden: a zero-trust service mesh, one command to bring it up."""
    ctx.obj = context_name
