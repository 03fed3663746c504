"""Whether a program fits the selectors of an entry, and where not.

All selectors that are given must hold. What an entry wants is told to the agent's own user alone (`str` of a misfit):
any program may say any entry's name, and would learn what to look like. It is told which selector it fails, and what it
is itself (`Misfit.brief`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.unknown_fields import UnknownFieldSet

from meshwarden.agents.attestation.caller import Program
from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.v1 import resources_pb2 as resources


@dataclass(frozen=True)
class Misfit:
    """One selector that does not hold.

    Attributes:
        selector: its name as in a manifest; empty if it is none of them.
        subject: what it is about, of a program: "uid".
        found: what that is.
        wanted: what the entry wants.
    """

    selector: str
    subject: str
    found: str
    wanted: str

    @property
    def brief(self) -> str:
        """What the program itself may hear."""
        return f"its {self.subject} is {self.found}, not the entry's" if self.selector else self.found

    def __str__(self) -> str:
        return f"its {self.subject} is {self.found}, the entry wants {self.wanted}" if self.selector else self.found


def told(misfits: Iterable[Misfit], *, in_full: bool) -> str:
    """Misfits as text; `in_full` for whom the node belongs to."""
    return "; ".join(str(misfit) if in_full else misfit.brief for misfit in misfits)


def user_misfits(selectors: resources.Selectors, program: Program) -> list[Misfit]:
    """In which ways a program's numeric user does not fit."""
    found = []
    if selectors.HasField("uid") and selectors.uid != program.uid:
        found.append(Misfit("uid", "uid", str(program.uid), str(selectors.uid)))
    if selectors.HasField("gid") and selectors.gid != program.gid:
        found.append(Misfit("gid", "gid", str(program.gid), str(selectors.gid)))
    return found


def misfits_before_exec(selectors: resources.Selectors, program: Program, evidence: Evidence) -> list[Misfit]:
    """In which ways a process does not fit, whatever program it is about to become."""
    found = _misfits_but_name(selectors, program, evidence)
    if selectors.user and (uid := evidence.uid_of(selectors.user)) != program.uid:
        wanted = f"{selectors.user} ({'unknown here' if uid is None else f'uid {uid}'})"
        found.append(Misfit("user", "user", f"uid {program.uid}", wanted))
    return found


def misfits(selectors: resources.Selectors, program: Program, evidence: Evidence) -> list[Misfit]:
    """In which ways a program does not fit an entry's selectors; empty if it fits."""
    found = misfits_but_sha256(selectors, program, evidence)
    if not found and selectors.sha256 and (digest := evidence.sha256(program.pid)) != selectors.sha256:
        found.append(Misfit("sha256", "executable's SHA-256", digest or "unknown", selectors.sha256))
    return found


def misfits_but_sha256(selectors: resources.Selectors, program: Program, evidence: Evidence) -> list[Misfit]:
    """The misfits that can be told without having read the program's executable.

    Selectors that select nothing fit nobody: the control plane refuses them, and we don't rely on that.
    """
    found = misfits_before_exec(selectors, program, evidence)
    if selectors.path and (path := evidence.path(program.pid)) != selectors.path:
        is_ = path or "not the file of its name, or was replaced since it started"
        found.append(Misfit("path", "executable", is_, selectors.path))
    return found


def unknown_user(selectors: resources.Selectors, program: Program, evidence: Evidence) -> str:
    """The user that is to be looked up to tell whether a program fits; empty if none is."""
    if not selectors.user or evidence.knows(selectors.user) or _misfits_but_name(selectors, program, evidence):
        return ""
    return selectors.user


def _misfits_but_name(selectors: resources.Selectors, program: Program, evidence: Evidence) -> list[Misfit]:
    if len(UnknownFieldSet(selectors)):
        # Whatever it is that must hold, we can't tell that it does.
        return [Misfit("", "", "the entry has selectors that this agent is too old for", "")]
    if not selectors.ListFields():
        return [Misfit("", "", "the entry has no selectors", "")]
    found = user_misfits(selectors, program)
    if selectors.supplementary_gids:
        wanted, groups = frozenset(selectors.supplementary_gids), evidence.groups(program)
        if groups is None or not wanted <= groups:
            found.append(Misfit("supplementaryGids", "set of supplementary groups", _listed(groups), _listed(wanted)))
    if selectors.systemd_unit or selectors.cgroup or selectors.container_id:
        found += _place_misfits(selectors, program, evidence)
    return found


def _place_misfits(selectors: resources.Selectors, program: Program, evidence: Evidence) -> list[Misfit]:
    place, found = evidence.placement(program.pid), []
    if selectors.systemd_unit and place.unit != selectors.systemd_unit:
        found.append(Misfit("systemdUnit", "systemd unit", place.unit or "none", selectors.systemd_unit))
    if selectors.cgroup and not place.is_within(selectors.cgroup):
        found.append(Misfit("cgroup", "control group", place.cgroup or "unknown", selectors.cgroup))
    if selectors.container_id and place.container != selectors.container_id:
        found.append(Misfit("containerId", "container", place.container or "none", selectors.container_id))
    return found


def _listed(groups: frozenset[int] | None) -> str:
    if groups is None:
        return "unknown"
    return ", ".join(map(str, sorted(groups))) or "none"


async def learn(wanted: Iterable[resources.Selectors], program: Program, evidence: Evidence) -> None:
    """Reads what takes its time of a program, where nothing else decides whether it fits one of these selectors."""
    known = list(wanted)
    users = {unknown_user(selectors, program, evidence) for selectors in known} - {""}
    if users:
        await evidence.look_up(users)
    decides = (one for one in known if one.sha256 and not misfits_but_sha256(one, program, evidence))
    if next(decides, None) is not None and evidence.sha256(program.pid) is None:
        await evidence.read(program.pid)
