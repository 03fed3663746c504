"""One running instance of a workload entry, in memory and on disk."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.v1 import resources_pb2 as resources


def is_ingress(entry: resources.WorkloadEntry) -> bool:
    """Whether no program is ever an instance of an entry: it is of an ingress."""
    return entry.spec.data_plane == resources.WorkloadEntrySpec.INGRESS


@dataclass(frozen=True, eq=False)
class Workload:
    """One running instance of an entry.

    Attributes:
        id: unique on the node: `<tenant>/<entry>#<number>`, or `<tenant>/<instance>`.
        entry: as it was when the process registered.
        service: the entry's.
        spiffe_id: who it is.
        pid: the registered process.
        start_time: when that started, in clock ticks since boot.
        pidfd: becomes readable when it ends; the registry's to close. Of an ingress there is no program: 0, 0 and -1.
        uid: its effective user.
        gid: its effective group.
        port: where the program listens; 0 if it only calls.
        directory: its own, the agent's property: bootstrap, and below it what the workload's user may read.
        number: the smallest that was free among the entry's instances.
        is_implicit: it did not register: the one entry whose selectors it fits was found for it.
    """

    id: str
    entry: resources.WorkloadEntry
    service: resources.Service
    spiffe_id: SpiffeId
    pid: int
    start_time: int
    pidfd: int
    uid: int
    gid: int
    port: int
    directory: Path
    number: int
    is_implicit: bool = False

    @property
    def entry_name(self) -> str:
        """`<tenant>/<entry>`."""
        return f"{self.entry.metadata.tenant}/{self.entry.metadata.name}"

    @property
    def service_name(self) -> str:
        """`<tenant>/<service>`, as its certificates say."""
        return f"{self.spiffe_id.tenant}/{self.spiffe_id.service}"

    @property
    def has_envoy(self) -> bool:
        """Whether an Envoy belongs beside it."""
        if self.is_ingress:
            return not self.entry.spec.ingress
        return not self.is_implicit and self.entry.spec.data_plane == resources.WorkloadEntrySpec.ENVOY

    @property
    def is_ingress(self) -> bool:
        """Whether it has no program: the agent runs an ingress's Envoy for it, or has its identity for such a one."""
        return is_ingress(self.entry)

    @property
    def credentials(self) -> Path:
        """The directory with tls.crt, tls.key and ca.crt."""
        return self.directory / "credentials"

    def stored(self, *, is_admitted: bool) -> "Stored":
        """What of it is kept on disk."""
        return Stored(
            self.id,
            self.entry_name,
            self.pid,
            self.start_time,
            self.uid,
            self.gid,
            self.port,
            self.number,
            self.is_implicit,
            is_admitted,
        )


@dataclass(frozen=True)
class Stored:
    """A registration as it is kept on disk, for an agent that starts again beside running programs."""

    id: str
    entry: str
    pid: int
    start_time: int
    uid: int
    gid: int
    port: int
    number: int
    is_implicit: bool
    is_admitted: bool


def make_directory(workload: Workload) -> None:
    """Makes a workload's directory, which its user may pass through but not write to.

    Raises:
        OSError: the file system refuses.
    """
    workload.directory.mkdir(mode=0o711, exist_ok=True)
    workload.directory.chmod(0o711)  # whatever the umask says


def sharers(workloads: Iterable[Workload]) -> Iterator[str]:
    """The ids of those that run as the same user as a workload of another entry."""
    known = [one for one in workloads if one.has_envoy or not one.is_ingress]  # the others have no process
    entries_of_uid: dict[int, set[str]] = {}
    for item in known:
        entries_of_uid.setdefault(item.uid, set()).add(item.entry_name)
    return (item.id for item in known if len(entries_of_uid[item.uid]) > 1)
