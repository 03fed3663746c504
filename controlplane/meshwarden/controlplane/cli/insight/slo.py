"""`meshwarden slo`."""

from pathlib import Path
from typing import Any

import click
import yaml

from meshwarden.controlplane.cli import client
from meshwarden.controlplane.cli.change.resource import list_all
from meshwarden.controlplane.cli.failure import Failure
from meshwarden.controlplane.insight.slo import RUNBOOKS, rules
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.manifest import ManifestFaults, parse_all
from meshwarden.v1.resources_pb2 import SLO, Resource, Service

HEAD = "# Made by `meshwarden slo rules`: don't change it, change the SLO and make it anew.\n"


@click.group()
def slo() -> None:
    """Make Prometheus rules of service level objectives."""


@slo.command(name="rules")
@click.option(
    "-f",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the SLOs of these manifests, which hold their services too, instead of the mesh's; repeatable.",
)
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option(
    "--scale",
    type=click.FloatRange(1, 10_000),
    default=1.0,
    show_default=True,
    help="Let everything happen so many times as fast: for demonstrations and tests.",
)
@click.option(
    "--runbooks", default=RUNBOOKS, show_default=True, metavar="URL", help="Where the runbooks are: URL<Alert>.md."
)
def make_rules(files: tuple[Path, ...], tenant: str, scale: float, runbooks: str) -> None:
    """Print recording and alert rules, for Prometheus' `rule_files`.

    Alerts page where an error budget burns 14.4 or 6 times too fast, and ask for a ticket at 3 and 1.
    """
    resources = _read(files) if files else _ask(tenant)
    services = {
        (message.metadata.tenant, message.metadata.name): message
        for message in map(model.unwrap, resources)
        if isinstance(message, Service)
    }
    found: list[tuple[SLO, Service]] = []
    for message in map(model.unwrap, resources):
        if isinstance(message, SLO) and tenant in ("", message.metadata.tenant):
            service = services.get((message.metadata.tenant, message.spec.service))
            if service is None:
                name = f"{message.metadata.tenant}/{message.spec.service}"
                raise Failure(f"there is no Service {name}", "give the manifest that has it as well: -f FILE")
            found.append((message, service))
    if not found:
        raise Failure("there is no SLO", "apply one: docs/resources.md has an example")
    click.echo(HEAD + yaml.dump(rules(found, scale, runbooks), Dumper=_Dumper, sort_keys=False, width=1000), nl=False)


class _Dumper(yaml.SafeDumper):
    """Writes every value out, and an expression of several lines as one."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes every value out."""
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Keeps lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def _ask(tenant: str) -> list[Resource]:
    with client.connect_current() as mesh:
        return [*list_all(mesh, "Service", tenant), *list_all(mesh, "SLO", tenant)]


def _read(files: tuple[Path, ...]) -> list[Resource]:
    try:
        return [item.resource for item in parse_all((str(path), path.read_text()) for path in files)]
    except ManifestFaults as error:
        raise Failure(str(error)) from None
