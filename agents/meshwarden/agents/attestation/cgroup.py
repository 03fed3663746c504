"""Where a process stands among control groups, and which systemd unit and which container that says it belongs to.

A name alone says nothing: whoever has a subtree delegated to him (every user has one below `user@UID.service`, and a
rootless container engine works there) can make groups of any name in it. So a path is read from the root, and only as
far as root alone makes names: through slices, each within the one that its name says, down to the first unit or
container. What lies below that is its own affair.

    /system.slice/orders.service                                    unit orders.service
    /system.slice/orders.service/system.slice/billing.service       unit orders.service
    /user.slice/user-1000.slice/user@1000.service/billing.service   unit user@1000.service
    /system.slice/docker-<id>.scope                                 unit docker-<id>.scope, container <id>
    /kubepods/burstable/pod<uid>/<id>                               container <id>

Pure: it is given what the kernel's file says.
"""

import re
from dataclasses import dataclass
from typing import Final

_UNIFIED: Final = ""
_SYSTEMD: Final = "name=systemd"
_SLICE: Final = re.compile(r"([A-Za-z0-9:_.\\]+(?:-[A-Za-z0-9:_.\\]+)*)\.slice")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,248}\.(?:service|scope)")
_ID: Final = r"([0-9a-f]{64})"
_SCOPE: Final = re.compile(rf"(?:docker|cri-containerd|crio|libpod|nerdctl)-{_ID}\.scope")
_DIRECTORIES: Final = re.compile(
    rf"/(?:docker/|libpod_parent/libpod-|kubepods/(?:(?:besteffort|burstable)/)?pod[0-9a-f-]{{32,36}}/(?:crio-)?){_ID}"
    r"(?:/.*)?"
)
_DELETED: Final = " (deleted)"


@dataclass(frozen=True)
class Placement:
    """Where a process stands.

    Attributes:
        cgroup: its control group, from the root; None if it cannot be told.
        unit: the unit of the system's service manager; None if it is in none.
        container: the id of the container, of the outermost of nested ones; None if it is in none that we know.
    """

    cgroup: str | None = None
    unit: str | None = None
    container: str | None = None

    def is_within(self, cgroup: str) -> bool:
        """Whether the process is in a control group, or in one below it."""
        return self.cgroup is not None and (self.cgroup == cgroup or self.cgroup.startswith(f"{cgroup}/"))


def parse(text: str) -> Placement:
    """Reads a /proc/PID/cgroup, of version 1, 2 or both beside each other. What is out of shape places nobody.

    Source: cgroups(7), /proc/[pid]/cgroup.
    """
    paths: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):  # a name may hold whatever else str.splitlines() takes for an end
        number, _, rest = line.partition(":")
        controllers, found, path = rest.partition(":")
        if not number.isdecimal() or not found or controllers in paths or not _is_plain(path):
            return Placement()
        paths[controllers] = path
    chosen = _chosen(paths)
    if chosen is None:
        return Placement()
    # systemd keeps both trees where both are there: neither may say something else than the other.
    units = {_unit_of(paths[tree]) for tree in (_UNIFIED, _SYSTEMD) if paths.get(tree, "/") != "/"}
    return Placement(chosen, units.pop() if len(units) == 1 else None, _container_of(chosen))


def _is_plain(path: str) -> bool:
    """Whether a path is one of our own namespace, of a group that is still there."""
    return path.startswith("/") and not path.startswith("/..") and not path.endswith(_DELETED)


def _chosen(paths: dict[str, str]) -> str | None:
    for tree in (_UNIFIED, _SYSTEMD):
        if paths.get(tree, "/") != "/":
            return paths[tree]
    others = {path for path in paths.values() if path != "/"}
    if not others:
        return "/" if paths else None
    return others.pop() if len(others) == 1 else None


def _first(path: str) -> str | None:
    """What stands in the slices of a path; None if one of them is in a place that systemd doesn't give it.

    Source: systemd.slice(5): "foo-bar.slice" lies within "foo.slice".
    """
    above = ""
    for name in path.split("/")[1:]:
        found = _SLICE.fullmatch(name)
        if found is None:
            return name
        if found[1].rpartition("-")[0] != above:
            return None
        above = found[1]
    return None


def _unit_of(path: str) -> str | None:
    # systemd sets "_" before a name that could be one of the kernel's files.
    name = (_first(path) or "").removeprefix("_")
    return name if _UNIT.fullmatch(name) else None


def _container_of(path: str) -> str | None:
    found = _SCOPE.fullmatch(_first(path) or "") or _DIRECTORIES.fullmatch(path)
    return None if found is None else found[1]
