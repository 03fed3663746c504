"""Whether there is a place for one more instance of an entry beside what runs, and what it is called."""

from collections.abc import Mapping
from typing import Final

from meshwarden.agents.attestation.caller import Program
from meshwarden.agents.workload.entry import Entry, Refusal, RegistrationRefused
from meshwarden.agents.workload.workload import Workload

_MAX_PER_ENTRY: Final = 256
_MAX_WORKLOADS: Final = 2048


def check_room(workloads: Mapping[str, Workload], entry: Entry, port: int, program: Program) -> None:
    """Checks what one more instance would share with `workloads`, by id: their bounds, its port, its user.

    Raises:
        RegistrationRefused: there are too many, or another has the port or the user.
    """
    of_entry = sum(1 for item in workloads.values() if item.entry_name == entry.name)
    if of_entry >= _MAX_PER_ENTRY or len(workloads) >= _MAX_WORKLOADS:
        raise RegistrationRefused(
            Refusal.FULL,
            f"{of_entry} instances of {entry.name} and {len(workloads)} workloads run here; at most "
            f"{_MAX_PER_ENTRY} and {_MAX_WORKLOADS} may",
        )
    for other in workloads.values():
        if port and other.port == port:
            raise RegistrationRefused(
                Refusal.TAKEN, f"port {port} is {other.id}'s: say another with --port, or stop that one"
            )
        shares = other.uid == program.uid and other.entry_name != entry.name
        if shares and not (entry.entry.spec.insecure_same_user and other.entry.spec.insecure_same_user):
            raise RegistrationRefused(
                Refusal.USER_SHARED,
                f"{other.id} runs as uid {program.uid} too, and each could read the other's memory: run one as "
                "another user, or set insecureSameUser on both entries",
            )


def free_number(workloads: Mapping[str, Workload], entry: Entry) -> int:
    """The least number that no instance of the entry has."""
    taken = {item.number for item in workloads.values() if item.entry_name == entry.name}
    return next(number for number in range(1, _MAX_PER_ENTRY + 2) if number not in taken)


def identifier_of(workloads: Mapping[str, Workload], entry: Entry, instance: str, number: int) -> str:
    """A new instance's id: "acme/orders#1", or "acme/NAME" of one that names itself.

    Raises:
        RegistrationRefused: another has that name.
    """
    if not instance:
        return f"{entry.name}#{number}"
    identifier = f"{entry.entry.metadata.tenant}/{instance}"
    if identifier in workloads:
        raise RegistrationRefused(Refusal.TAKEN, f"{identifier} runs already: say another with --instance")
    return identifier
