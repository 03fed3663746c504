"""The sample workloads: which run where, and their manifests."""

from collections.abc import Collection, Iterable
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
        keeps: whether it keeps files, in the directory that its argument `--directory` names.
    """

    name: str
    entry: str
    node: str
    module: str
    arguments: tuple[str, ...] = ()
    serves: bool = False
    keeps: bool = False

    @property
    def tenant(self) -> str:
        """The tenant of its entry."""
        return self.entry.partition("/")[0]


SHOP = (
    Sample("orders-v1-a", "platform/orders-v1", "node-a", "orders", ("--version", "v1"), serves=True),
    Sample("orders-v1-b", "platform/orders-v1", "node-b", "orders", ("--version", "v1"), serves=True),
    Sample("orders-v2", "platform/orders-v2", "node-b", "orders", ("--version", "v2"), serves=True),
    Sample("billing", "platform/billing", "node-b", "billing", serves=True),
    Sample("acme-web", "acme/web", "node-a", "web"),
    Sample("globex-web", "globex/web", "node-b", "web"),
    Sample("intruder", "acme/intruder", "node-a", "intruder"),
)
# Records are to be seen in every tier within a few minutes.
_TIERS = ("--hot-kib", "16", "--hot-s", "20", "--warm-s", "60")
DAENA = (
    Sample("bus", "daena/bus", "node-a", "daena", ("bus",), serves=True),
    Sample("model", "daena/model", "node-b", "daena", ("model",), serves=True),
    Sample("memory", "daena/memory", "node-b", "daena", ("memory", *_TIERS), serves=True, keeps=True),
    Sample("analyst", "acme/analyst", "node-a", "daena", ("agent", "--name", "analyst"), serves=True),
    Sample("sceptic", "globex/sceptic", "node-b", "daena", ("agent", "--name", "sceptic"), serves=True),
    Sample("scholar", "daena/scholar", "node-a", "daena", ("agent", "--name", "scholar"), serves=True),
    Sample("council", "daena/council", "node-a", "daena", ("council",), serves=True),
    Sample("convener", "daena/convener", "node-b", "daena", ("convene",)),
)
SETS = {"shop": SHOP, "daena": DAENA}
_FILES = {
    "shop": ("tenants.yaml", "orders.yaml", "billing.yaml", "clients.yaml"),
    "daena": ("tenants.yaml", "daena.yaml"),
}
# What one has to do with the other.
_BETWEEN = {frozenset(("shop", "daena")): ("review.yaml",)}


def samples(sets: Iterable[str]) -> tuple[Sample, ...]:
    """The samples of some sets, in the order of starting."""
    return tuple(sample for name in sets for sample in SETS[name])


def manifests(sets: Collection[str], uid: int, node_a: str, node_b: str) -> list[Located]:
    """Reads the manifests of some sets of samples for this machine.

    Args:
        sets: names of `SETS`.
        uid: as whom the samples run.
        node_a: the first node.
        node_b: the second node.
    """
    values = {"uid": str(uid), "node_a": node_a, "node_b": node_b}
    names = dict.fromkeys(name for one in sets for name in _FILES[one])
    names |= dict.fromkeys(name for both, more in _BETWEEN.items() if both <= set(sets) for name in more)
    found = [files(MANIFESTS).joinpath(name) for name in names]
    return parse_all((item.name, Template(item.read_text("utf-8")).substitute(values)) for item in found)
