"""`meshwarden completion`."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print shell completion: `source <(meshwarden completion bash)`."""
    completion_class = get_completion_class(shell)
    assert completion_class is not None  # noqa: S101 - the choices above are click's own
    click.echo(completion_class(ctx.find_root().command, {}, "meshwarden", "_MESHWARDEN_COMPLETE").source())
