"""The sample workloads: which run where, and their manifests."""

import os
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from meshwarden.controlplane.resources.manifest import Located, parse_all

MANIFESTS = "meshwarden.examples.manifests"


@dataclass(frozen=True)
class Sample:
    """One workload.

    Attributes:
        name: of its process, its log and its instance.
        entry: "<tenant>/<entry>".
        node: whose agent runs it.
        module: the program, below `meshwarden.examples`.
        arguments: of the program.
        serves: whether it listens and so needs a port.
    """

    name: str
    entry: str
    node: str
    module: str
    arguments: tuple[str, ...] = ()
    serves: bool = False

    @property
    def tenant(self) -> str:
        """The tenant of its entry."""
        return self.entry.partition("/")[0]


SAMPLES = (
    Sample("orders-v1-a", "platform/orders-v1", "node-a", "orders", ("--version", "v1"), serves=True),
    Sample("orders-v1-b", "platform/orders-v1", "node-b", "orders", ("--version", "v1"), serves=True),
    Sample("orders-v2", "platform/orders-v2", "node-b", "orders", ("--version", "v2"), serves=True),
    Sample("billing", "platform/billing", "node-b", "billing", serves=True),
    Sample("acme-web", "acme/web", "node-a", "web"),
    Sample("globex-web", "globex/web", "node-b", "web"),
    Sample("intruder", "acme/intruder", "node-a", "intruder"),
)


def manifests(uid: int, node_a: str, node_b: str) -> list[Located]:
    """Reads the samples' manifests for this machine.

    Args:
        uid: as whom the samples run.
        node_a: the first node.
        node_b: the second node.
    """
    values = {"uid": str(uid), "node_a": node_a, "node_b": node_b}
    found = sorted((item for item in files(MANIFESTS).iterdir() if item.name.endswith(".yaml")), key=_order)
    return parse_all((item.name, Template(item.read_text("utf-8")).substitute(values)) for item in found)


def _order(item: os.PathLike[str] | object) -> str:
    return str(getattr(item, "name", ""))
