"""Workloads without a program: an ingress, whose Envoy the agent starts by itself, and who lends it an identity.

They are there as long as their entry names this node, in one instance; no program is ever taken for one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from meshwarden.agents.workload.entry import Entry
from meshwarden.agents.workload.workload import Stored, Workload, is_ingress
from meshwarden.v1 import resources_pb2 as resources


class Make(Protocol):
    """Makes a workload of what is kept of it."""

    def __call__(self, item: Stored, entry: Entry, pidfd: int, /) -> Workload:
        """The workload."""


def hosted(make: Make, entries: Mapping[str, Entry], present: Mapping[str, Workload]) -> Iterator[Workload]:
    """The workloads of ingresses' entries that are still to be made.

    Args:
        make: makes one.
        entries: all of this node: `{tenant/entry: Entry}`.
        present: the workloads that are there: `{workload id: Workload}`.
    """
    for entry in entries.values():
        identifier = f"{entry.name}#1"
        if not is_ingress(entry.entry) or identifier in present:
            continue
        wanted = entry.entry.spec.selectors
        if wanted.HasField("uid"):  # else the control plane, which refuses that, is not the one that we know
            gid = wanted.gid if wanted.HasField("gid") else wanted.uid
            yield make(Stored(identifier, entry.name, 0, 0, wanted.uid, gid, 0, 1, False, True), entry, -1)


def is_same(now: resources.WorkloadEntry, then: resources.WorkloadEntry) -> bool:
    """Whether a workload of an entry as it was is still one of the entry as it is, selectors aside."""
    if is_ingress(now) != is_ingress(then) or now.spec.service != then.spec.service:
        return False
    return not is_ingress(now) or bool(now.spec.ingress) == bool(then.spec.ingress)


def speakers(
    ingress: Workload, workloads: Iterable[Workload], entries: Mapping[str, resources.WorkloadEntry]
) -> dict[str, Workload]:
    """Whose identities a workload has beside its own: `{tenant: workload}`, the first of each by its entry's name.

    Args:
        ingress: the workload; who is none has none.
        workloads: all of this node.
        entries: theirs, as they are now: `{workload id: entry}`.
    """
    if not (ingress.is_ingress and ingress.has_envoy):
        return {}
    lending = [one for one in workloads if one.is_ingress and entries[one.id].spec.ingress == ingress.service_name]
    by_name = sorted(lending, key=lambda one: one.entry_name, reverse=True)
    return {one.entry.metadata.tenant: one for one in by_name}
