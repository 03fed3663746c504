"""Which programs of this node are which workload entry.

A registration belongs to one process and ends with it (its pidfd says so). A caller belongs to the nearest registered
process among its ancestors, if the entry's selectors hold for the caller itself. An Envoy that the agent started is
adopted: it is the workload's by the agent's own word, and its executable is nobody's selector.

Errors: `RegistrationRefused`, with the kind of refusal, so that the API maps it to a status once.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from meshwarden.agents.attestation.caller import Program, ancestors, is_alive, is_own_user, program_of, read_stat
from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.agents.attestation.refusal import Refusals
from meshwarden.agents.attestation.selector import Misfit, learn, misfits, misfits_before_exec, told, user_misfits
from meshwarden.agents.workload.entry import Entry, Refusal, RegistrationRefused, check_names, choose
from meshwarden.agents.workload.hosted import hosted, is_same, speakers
from meshwarden.agents.workload.place import check_room, free_number, identifier_of
from meshwarden.agents.workload.workload import Stored, Workload, is_ingress
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.mtls.connection import Connection, ended
from meshwarden.v1 import node_service_pb2 as node_pb

_log = structlog.get_logger()
EXEC_FIX: Final = "start the program with `meshwarden-agent exec --entry NAME -- COMMAND`"


class Registry:
    """The node's entries and the processes registered under them. Used on the event loop's thread alone."""

    def __init__(self, trust_domain: str, directory: Path, evidence: Evidence, refusals: Refusals) -> None:
        """Starts empty; each workload's directory will be one of `directory`, which must exist."""
        self._trust_domain = trust_domain
        self._directory = directory
        self._evidence = evidence
        self._refusals = refusals
        self._entries: dict[str, Entry] = {}
        self._workloads: dict[str, Workload] = {}
        self._by_process: dict[tuple[int, int], str] = {}
        self._adopted: dict[tuple[int, int], str] = {}
        self._admitted: set[str] = set()
        self._listeners: list[Callable[[], None]] = []

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The entries that name this node: `{tenant/entry: Entry}`."""
        return MappingProxyType(self._entries)

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """What runs: `{workload id: Workload}`."""
        return MappingProxyType(self._workloads)

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change of workloads or entries."""
        self._listeners.append(callback)

    def set_entries(self, entry_set: node_pb.EntrySet) -> None:
        """Takes the whole set; registrations of entries that are gone, or are somebody else's now, end."""
        services = {(item.metadata.tenant, item.metadata.name): item for item in entry_set.services}
        found: dict[str, Entry] = {}
        for item in entry_set.entries:
            service = services.get((item.metadata.tenant, item.spec.service))
            if service is None:
                _log.warning("entry without its service", tenant=item.metadata.tenant, entry=item.metadata.name)
                continue
            entry = Entry(item, service)
            found[entry.name] = entry
        before, self._entries = self._entries, found
        for workload in list(self._workloads.values()):
            now = found.get(workload.entry_name)
            if now is None or not is_same(now.entry, workload.entry):
                self._remove(workload, "its entry is gone")
            elif user_misfits(now.entry.spec.selectors, _program(workload)):
                self._remove(workload, "its entry is another user's now")
            elif workload.entry_name in before:
                old = before[workload.entry_name].entry.spec.selectors
                if old != now.entry.spec.selectors and not workload.is_ingress:
                    self._admitted.discard(workload.id)  # until the new selectors are seen to hold
        for workload in hosted(self._make, found, self._workloads):
            self._admitted.add(workload.id)
            self._insert(workload)
        self._refusals.forget(set(found))
        self.review()
        self._changed()

    def trace_ratio(self, workload: Workload) -> float:
        """How many of the traces that begin in a workload are to be recorded, as its service says now."""
        entry = self._entries.get(workload.entry_name)
        spec = (entry.service if entry is not None else workload.service).spec
        return spec.trace_sampling.ratio if spec.HasField("trace_sampling") else 1.0

    def speakers(self, workload: Workload) -> dict[str, Workload]:
        """Whose identities an ingress has, beside its own: `{tenant: workload}`, the first by its entry's name."""
        now = {one.id: self._present(one).entry for one in self._workloads.values()}
        return speakers(workload, self._workloads.values(), now)

    def find(self, connection: Connection) -> Workload | None:
        """The workload that a caller belongs to; None for a dead one and one that is no workload's."""
        program = program_of(connection)
        if program is None or connection.pidfd is None:
            return None
        workload = self._workload_of(program, connection.pidfd)
        if workload is None or not self._is_there(connection):
            return None
        return workload

    def misfits(self, connection: Connection) -> list[Misfit]:
        """Why a caller inside a registered process tree is none of that workload; empty if it is, or is in none."""
        program = program_of(connection)
        registered = None if program is None else self._registered_above(program)
        if program is None or registered is None:
            return []
        if bad := self._misfits(registered, program):
            self._refusals.add(registered.entry_name, program, bad)
        return bad

    def held_back(self) -> dict[str, str]:
        """Which registered processes are not the programs that their entries want: `{workload id: in which ways}`."""
        return {
            name: told(self._misfits(workload, _program(workload)), in_full=True)
            for name, workload in self._workloads.items()
            if name not in self._admitted
        }

    def register(self, connection: Connection, name: str, port: int = 0, instance: str = "") -> Workload:
        """Takes the calling process as an instance of an entry.

        The executable is not looked at yet: the process is about to become another program. What hangs on it is held
        back until the selectors hold (`is_admitted`).

        Raises:
            RegistrationRefused: with its kind and a message for the caller.
        """
        program = program_of(connection)
        if program is None or not self._is_there(connection):
            raise RegistrationRefused(Refusal.UNFIT, "the calling process has ended")
        check_names(name, port, instance)
        self.sweep()
        entry = choose(self._entries, name)
        if is_ingress(entry.entry):
            raise RegistrationRefused(
                Refusal.UNFIT, f"{entry.name} is an ingress's: its agent runs that, no program does"
            )
        if bad := misfits_before_exec(entry.entry.spec.selectors, program, self._evidence):
            self._refusals.add(entry.name, program, bad)
            text = told(bad, in_full=is_own_user(connection))
            raise RegistrationRefused(Refusal.UNFIT, f"this process does not fit entry {entry.name}: {text}")
        if not self._is_there(connection):  # what was read of it may be another's, which has its pid by now
            raise RegistrationRefused(Refusal.UNFIT, "the calling process has ended")
        return self._add(program, connection, entry, port or entry.entry.spec.port, instance)

    def register_implicit(self, connection: Connection) -> Workload:
        """Takes a caller that did not register as the one entry that it fits.

        Raises:
            RegistrationRefused: if it fits none, or several.
        """
        program = program_of(connection)
        if program is None:
            raise RegistrationRefused(Refusal.UNFIT, "the calling process has ended")
        if bad := self.misfits(connection):
            text = told(bad, in_full=is_own_user(connection))
            raise RegistrationRefused(Refusal.UNFIT, f"this process does not fit its entry: {text}")
        fitting = self._fitting(program)
        if not self._is_there(connection):  # what was read of it may be another's, which has its pid by now
            raise RegistrationRefused(Refusal.UNFIT, "the calling process has ended")
        if not fitting:
            raise RegistrationRefused(Refusal.UNFIT, f"this process fits no entry of this node: {EXEC_FIX}")
        if len(fitting) > 1:
            names = ", ".join(entry.name for entry in fitting[:10])
            raise RegistrationRefused(Refusal.UNFIT, f"this process fits several entries ({names}): {EXEC_FIX}")
        self.sweep()
        return self._add(program, connection, fitting[0], 0, "", is_implicit=True)

    async def learn(self, connection: Connection) -> None:
        """Reads what takes its time of a caller, so that it can be told afterwards whether it fits."""
        program = program_of(connection)
        if program is not None:
            await learn((entry.entry.spec.selectors for entry in self._entries.values()), program, self._evidence)

    async def learn_registered(self) -> None:
        """Reads what takes its time of the registered processes, and reads again what may have changed."""
        for workload in list(self._workloads.values()):
            selectors = self._present(workload).entry.spec.selectors
            if workload.id not in self._admitted:
                await learn([selectors], _program(workload), self._evidence)
            elif selectors.user and self._evidence.is_old(selectors.user):
                await self._evidence.look_up([selectors.user])

    def is_admitted(self, workload_id: str) -> bool:
        """Whether all selectors were seen to hold for its process, or for one below it."""
        return workload_id in self._admitted

    def review(self) -> None:
        """Admits those whose registered process has become a program that fits."""
        for workload in list(self._workloads.values()):
            if workload.id not in self._admitted:
                self._admit_if_fit(workload, _program(workload), workload.pidfd)

    def adopt(self, pid: int, workload_id: str) -> None:
        """Takes a process that the agent has started as a workload's own, until it ends or the workload does."""
        self._adopted = {known: owner for known, owner in self._adopted.items() if owner != workload_id}
        stat = read_stat(pid)
        if stat is not None:  # with its start time: the pid of one that has ended is given anew
            self._adopted[pid, stat.start_time] = workload_id

    def end(self, workload_id: str, reason: str) -> None:
        """Ends a registration, if it is there."""
        workload = self._workloads.get(workload_id)
        if workload is not None:
            self._remove(workload, reason)
            self._changed()

    def sweep(self) -> None:
        """Ends the registrations of processes that have ended, ahead of the event loop's word."""
        gone = [one for one in self._workloads.values() if not one.is_ingress and ended(one.pidfd)]
        for workload in gone:
            self._remove(workload, "its process ended")
        if gone:
            self._changed()

    def stored(self) -> list[Stored]:
        """All registrations, to be kept on disk."""
        known = (item for item in self._workloads.values() if not item.is_ingress)
        return [item.stored(is_admitted=item.id in self._admitted) for item in known]

    def restore(self, items: Iterable[Stored]) -> None:
        """Takes back the registrations of an earlier run whose processes still live."""
        for item in items:
            entry = self._entries.get(item.entry)
            if entry is None or item.id in self._workloads or is_ingress(entry.entry):
                continue
            try:
                pidfd = os.pidfd_open(item.pid)
            except OSError:
                continue
            if not is_alive(item.pid, item.start_time) or ended(pidfd):
                os.close(pidfd)
                continue
            if item.is_admitted:
                self._admitted.add(item.id)
            self._insert(self._make(item, entry, pidfd))
        self._changed()

    def close(self) -> None:
        """Lets go of the processes, which stay what they are: the next run takes them back."""
        for workload in self._workloads.values():
            if not workload.is_ingress:
                asyncio.get_running_loop().remove_reader(workload.pidfd)
                os.close(workload.pidfd)
        self._workloads.clear()
        self._by_process.clear()

    # -- who a caller is

    def _is_there(self, connection: Connection) -> bool:
        return connection.pidfd is not None and not ended(connection.pidfd)

    def _workload_of(self, program: Program, pidfd: int) -> Workload | None:
        owner = self._adopted.get((program.pid, program.start_time))
        if owner is not None:
            return self._workloads.get(owner)
        workload = self._registered_above(program)
        if workload is None:
            return None
        self._admit_if_fit(workload, program, pidfd)
        return None if self._misfits(workload, program) else workload

    def _misfits(self, workload: Workload, program: Program) -> list[Misfit]:
        return misfits(self._present(workload).entry.spec.selectors, program, self._evidence)

    def _fitting(self, program: Program) -> list[Entry]:
        """The entries that a program fits, sorted by name."""
        found = {
            name: misfits(entry.entry.spec.selectors, program, self._evidence)
            for name, entry in self._entries.items()
            if not is_ingress(entry.entry)
        }
        fitting = sorted(name for name, bad in found.items() if not bad)
        if not fitting:
            self._refusals.add_nearest(program, found)
        return [self._entries[name] for name in fitting]

    def _registered_above(self, program: Program) -> Workload | None:
        for process in ancestors(program.pid, program.start_time):
            found = self._by_process.get(process)
            if found is not None:
                return self._workloads[found]
        return None

    def _present(self, workload: Workload) -> Entry:
        """The entry as it is now: changed selectors hold at once for who is there already."""
        return self._entries.get(workload.entry_name, Entry(workload.entry, workload.service))

    def _admit_if_fit(self, workload: Workload, program: Program, pidfd: int) -> None:
        """Admits a workload for a program that fits, and that still lives once it was seen to."""
        if workload.id not in self._admitted and not self._misfits(workload, program) and not ended(pidfd):
            self._admitted.add(workload.id)
            self._changed()

    # -- registering

    def _add(
        self,
        program: Program,
        connection: Connection,
        entry: Entry,
        port: int,
        instance: str,
        *,
        is_implicit: bool = False,
    ) -> Workload:
        known = self._by_process.get((program.pid, program.start_time))
        if known is not None:
            workload = self._workloads[known]
            if workload.entry_name == entry.name and workload.port == port:
                return workload
            raise RegistrationRefused(Refusal.TAKEN, f"this process is registered already, as {workload.id}")
        check_room(self._workloads, entry, port, program)
        number = free_number(self._workloads, entry)
        identifier = identifier_of(self._workloads, entry, instance, number)
        stored = Stored(
            identifier,
            entry.name,
            program.pid,
            program.start_time,
            program.uid,
            program.gid,
            port,
            number,
            is_implicit,
            False,
        )
        assert connection.pidfd is not None  # noqa: S101 - `_is_there` has looked
        workload = self._make(stored, entry, os.dup(connection.pidfd))
        self._insert(workload)
        _log.info("workload registered", workload=identifier, pid=program.pid, entry=entry.name)
        self._admit_if_fit(workload, program, workload.pidfd)
        self._changed()
        return workload

    def _make(self, item: Stored, entry: Entry, pidfd: int) -> Workload:
        metadata = entry.entry.metadata
        return Workload(
            id=item.id,
            entry=entry.entry,
            service=entry.service,
            spiffe_id=SpiffeId.workload(self._trust_domain, metadata.tenant, entry.entry.spec.service),
            pid=item.pid,
            start_time=item.start_time,
            pidfd=pidfd,
            uid=item.uid,
            gid=item.gid,
            port=item.port,
            # Names on disk are short: a Unix socket's path has 107 bytes, and two of them lie below.
            directory=self._directory / hashlib.sha256(item.id.encode()).hexdigest()[:12],
            number=item.number,
            is_implicit=item.is_implicit,
        )

    def _insert(self, workload: Workload) -> None:
        self._workloads[workload.id] = workload
        if workload.is_ingress:
            return
        self._by_process[workload.pid, workload.start_time] = workload.id
        asyncio.get_running_loop().add_reader(workload.pidfd, self.end, workload.id, "its process ended")

    def _remove(self, workload: Workload, reason: str) -> None:
        del self._workloads[workload.id]
        self._by_process.pop((workload.pid, workload.start_time), None)
        self._admitted.discard(workload.id)
        self._adopted = {pid: owner for pid, owner in self._adopted.items() if owner != workload.id}
        if not workload.is_ingress:
            asyncio.get_running_loop().remove_reader(workload.pidfd)
            with contextlib.suppress(OSError):
                os.close(workload.pidfd)
        _log.info("workload ended", workload=workload.id, pid=workload.pid, reason=reason)

    def _changed(self) -> None:
        for callback in self._listeners:
            callback()


def _program(workload: Workload) -> Program:
    return Program(workload.pid, workload.start_time, workload.uid, workload.gid)
