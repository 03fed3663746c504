"""Looks after each registered workload: its bootstrap, its Envoy, its health, until it ends.

Errors: `SidecarMissing`, an entry wants an Envoy and there is none.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.agents.envoy.supervisor import EnvoyMissing, EnvoyPlan, Supervisor, find_envoy
from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.workload import probe
from meshwarden.agents.workload.bootstrap import NodePlace, environment, grpc_bootstrap, write_grpc_bootstrap
from meshwarden.agents.workload.endpoint import Health, check_http, endpoints, is_listening
from meshwarden.agents.workload.leaving import Leaving
from meshwarden.agents.workload.planes import Planes
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload, make_directory
from meshwarden.certs import files
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources
from meshwarden.v1 import workload_service_pb2 as workload_pb

_log = structlog.get_logger()
_UNHEALTHY_AFTER: Final = 3
_INTERVAL_S: Final = 1.0
_FIRST_INTERVAL_S: Final = 0.2
_RETRY_S: Final = 5.0
_HTTP_PATH: Final = "/healthz"


class SidecarMissing(Exception):
    """A workload's Envoy cannot be started; the message says what to do."""


@dataclass(eq=False)
class _Attendance:
    """What is kept up for one workload."""

    workload: Workload
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    prepared: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    health: Health | None = None
    asked: bool = False
    is_leaving: bool = False
    again: asyncio.Event = field(default_factory=asyncio.Event)
    envoy: Supervisor | None = None
    error: str = ""


class Attendants:
    """One for each workload; run by `run`."""

    def __init__(
        self,
        registry: Registry,
        planes: Planes,
        place: NodePlace,
        credentials: Credentials,
        report: Callable[[list[node_pb.NodeEndpoint]], None],
        leaving: Leaving,
        clock: Callable[[], datetime],
        rng: random.Random,
        *,
        address: str,
        concurrency: int = 1,
    ) -> None:
        """Puts them together.

        Args:
            registry: what runs.
            planes: at which addresses.
            place: where that is.
            credentials: for health checks over mutual TLS.
            report: takes the whole set of endpoints at each change.
            leaving: whose endpoints are none any more.
            clock: the present, aware, UTC.
            rng: for backoff.
            address: where the mesh reaches this node.
            concurrency: worker threads of each Envoy.
        """
        self._registry, self._planes, self._place, self._credentials = registry, planes, place, credentials
        self._report, self._leaving, self._clock, self._rng = report, leaving, clock, rng
        self._address, self._concurrency = address, concurrency
        self._by_id: dict[str, _Attendance] = {}
        self._work = asyncio.Event()
        self._followed = asyncio.Event()
        self._told = False
        self._draining = False
        registry.listen(self._work.set)
        leaving.listen(self._look_who_left)

    def environment(self, workload: Workload) -> dict[str, str]:
        """The variables for a workload's program."""
        return environment(
            self._place,
            workload.directory / "bootstrap.json",
            workload.credentials,
            _service(workload),
            workload.port,
            self._planes.outbound(workload),
        )

    def envoy_pid(self, workload_id: str) -> int:
        """The process of a workload's Envoy; 0 if there is none."""
        known = self._by_id.get(workload_id)
        return known.envoy.pid if known is not None and known.envoy is not None else 0

    def envoys(self) -> list[workload_pb.EnvoyState]:
        """All Envoys."""
        return [
            workload_pb.EnvoyState(
                name=name,
                admin_socket=str(item.envoy.plan.admin_socket),
                outbound=str(self._planes.outbound(item.workload) or ""),
                inbound=self._planes.inbound(item.workload),
                pid=item.envoy.pid,
                restarts=item.envoy.restarts,
            )
            for name, item in sorted(self._by_id.items())
            if item.envoy is not None
        ]

    def admin_sockets(self) -> dict[str, Path]:
        """Where Envoys take questions: {workload id: socket}."""
        return {name: item.envoy.plan.admin_socket for name, item in self._by_id.items() if item.envoy is not None}

    def errors(self) -> dict[str, str]:
        """What is wrong with workloads: `{workload id: reason}`."""
        found = {name: item.error for name, item in self._by_id.items() if item.error}
        for name, item in self._by_id.items():
            if item.envoy is not None and item.envoy.fault:
                found[name] = f"its Envoy does not stay up: {item.envoy.fault}"
        return found

    async def ready(self, workload: Workload, timeout_s: float) -> None:
        """Returns when a workload's program can start: its files are there, and its Envoy is ready or `timeout_s` over.

        Raises:
            SidecarMissing: its Envoy cannot be started.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (item := self._by_id.get(workload.id)) is None or item.workload is not workload:
                    if self._registry.workloads.get(workload.id) is not workload:
                        return
                    await self._followed.wait()
                await item.prepared.wait()
                if item.error:
                    raise SidecarMissing(item.error)
                # One whose program is still to be seen gets nothing before, and would be waited for in vain.
                if item.envoy is not None and self._registry.is_admitted(workload.id):
                    await item.envoy.wait_ready()

    async def run(self) -> None:
        """Follows the registry until it is cancelled; then all Envoys end, and files stay for the next run."""
        async with anyio.create_task_group() as group:
            while True:
                self._work.clear()
                self._follow(group)
                # Who waits holds the old event; whoever comes next waits for the next round.
                event, self._followed = self._followed, asyncio.Event()
                event.set()
                await self._work.wait()

    async def drain(self) -> None:
        """Takes what Envoys serve out of the mesh, and ends each Envoy when its callers had time to leave."""
        self._draining = True
        self._tell()
        items = list(self._by_id.values())
        for item in items:
            if item.envoy is not None:
                item.envoy.stop()
        for item in items:
            if item.envoy is not None:
                await item.done.wait()

    def _follow(self, group: TaskGroup) -> None:
        present = self._registry.workloads
        for name, item in list(self._by_id.items()):
            if present.get(name) is not item.workload:
                item.scope.cancel()
                if name not in present and item.done.is_set():
                    del self._by_id[name]
        for name, workload in {} if self._draining else present.items():
            known = self._by_id.get(name)
            if known is None or known.workload is not workload:
                item = self._by_id[name] = _Attendance(workload)
                group.start_soon(self._attend, item, known)
        self._tell()

    async def _attend(self, item: _Attendance, before: _Attendance | None) -> None:
        try:
            with item.scope:
                if before is not None:
                    await before.done.wait()  # it holds the same ports and paths
                await self._keep_up(item)
        except* OSError as group:
            # One workload's trouble (a full disk, no more processes) is not the agent's end.
            item.error = f"{item.workload.id} is not looked after: {group.exceptions[0]}"
            _log.error("workload not attended", workload=item.workload.id, reason=str(group.exceptions[0]))
        finally:
            item.prepared.set()
            try:
                if item.scope.cancel_called:  # the registration has ended; when the agent does, files stay
                    await asyncio.to_thread(_clear, item.workload)
            finally:
                item.done.set()
                self._work.set()

    async def _keep_up(self, item: _Attendance) -> None:
        while not await self._prepare(item):  # noqa: ASYNC110 - a disk that is full signals nothing
            await asyncio.sleep(_RETRY_S)
        async with anyio.create_task_group() as group:
            if self._will_be_asked(item.workload):
                group.start_soon(self._check, item)
            if item.envoy is not None:
                await item.envoy.run()
                group.cancel_scope.cancel()

    async def _prepare(self, item: _Attendance) -> bool:
        """Makes what its program starts with; whether that could be done."""
        before, item.error = item.error, ""
        try:
            await asyncio.to_thread(self._write_bootstrap, item.workload)
            if item.workload.has_envoy:
                item.envoy = self._supervisor(item.workload)
        except (OSError, EnvoyMissing) as error:
            item.error = f"{item.workload.id} cannot be prepared: {error}"
            if item.error != before:
                _log.error("workload not prepared", workload=item.workload.id, reason=str(error))
        item.prepared.set()
        return not item.error

    def _write_bootstrap(self, workload: Workload) -> None:
        make_directory(workload)
        if workload.is_ingress:
            return
        bootstrap = grpc_bootstrap(self._place, f"{workload.id}/grpc", _service(workload), workload.credentials)
        write_grpc_bootstrap(workload.directory / "bootstrap.json", bootstrap)

    def _supervisor(self, workload: Workload) -> Supervisor:
        directory = workload.directory / "envoy"
        admin = directory / "admin.sock"
        place = self._place
        bootstrap = envoy_bootstrap(
            f"{workload.id}/envoy", _service(workload), place.region, place.zone, place.agent_socket, admin
        )
        is_root = os.geteuid() == 0
        if workload.is_ingress and not is_root and workload.uid != os.geteuid():
            raise PermissionError(f"only an agent that is root runs an ingress as uid {workload.uid}")
        plan = EnvoyPlan(
            name=workload.id,
            bootstrap=bootstrap,
            directory=directory,
            uid=workload.uid if is_root else os.geteuid(),
            gid=workload.gid if is_root else os.getegid(),
            concurrency=self._concurrency,
        )
        return Supervisor(plan, lambda pid: self._registry.adopt(pid, workload.id), self._rng, find_envoy())

    # -- health

    def _will_be_asked(self, workload: Workload) -> bool:
        return workload.port != 0 and not workload.is_implicit

    async def _check(self, item: _Attendance) -> None:
        spec = item.workload.service.spec.health_check
        interval_s = spec.interval.ToTimedelta().total_seconds() if spec.HasField("interval") else _INTERVAL_S
        item.health = _unknown(item.workload)
        while True:
            health = item.health
            changed = health.saw(await self._is_healthy(item))
            first, item.asked = not item.asked, True
            if health is not item.health:
                continue  # it was asked before it left
            if changed:
                _log.info("health changed", workload=item.workload.id, health=_word(health.state))
            if changed or first:
                self._tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(interval_s, _FIRST_INTERVAL_S) if health.state is None else interval_s):
                    await item.again.wait()
            item.again.clear()

    def _look_who_left(self) -> None:
        """Forgets how those do that said that they leave and do no more: most end, and one that goes on is asked."""
        for item in self._by_id.values():
            was, item.is_leaving = item.is_leaving, item.workload in self._leaving
            if was and not item.is_leaving and item.health is not None:
                item.health = _unknown(item.workload)
                item.again.set()
        self._work.set()

    async def _is_healthy(self, item: _Attendance) -> bool:
        workload = item.workload
        if not self._registry.is_admitted(workload.id):
            return False  # whoever registered under an entry's name is not in the mesh before it was seen to fit
        if item.envoy is not None and not (
            await item.envoy.ready() and await is_listening(self._address, self._planes.mesh_port(workload))
        ):
            return False
        spec = workload.service.spec
        if spec.protocol == resources.ServiceSpec.HTTP:
            return await check_http(workload.port, spec.health_check.http_path or _HTTP_PATH)
        if item.envoy is not None:
            return await probe.check_grpc("127.0.0.1", workload.port, spec.health_check.grpc_service, None)
        svid = self._credentials.svid(workload.id)
        if svid is None:
            return False
        identity = probe.Self(svid, self._credentials.bundle(), self._clock)
        return await probe.check_grpc(self._address, workload.port, spec.health_check.grpc_service, identity)

    def _tell(self) -> None:
        present = self._registry.workloads
        if not self._told:
            # What an agent finds running when it starts stays in the mesh until it was asked once.
            if any(item.health is not None and not item.asked for item in self._by_id.values()):
                return
            if any(
                self._will_be_asked(item.workload) and item.health is None and not item.error
                for item in self._by_id.values()
            ):
                return
            self._told = True
        health = {
            name: item.health
            for name, item in self._by_id.items()
            if item.health is not None
            and present.get(name) is item.workload
            and not (self._draining and item.envoy is not None)
            and item.workload not in self._leaving
        }
        ports = {name: self._planes.mesh_port(present[name]) for name in health}
        self._report(endpoints(present, health, self._address, ports))


def _unknown(workload: Workload) -> Health:
    """The health of one that was not asked yet."""
    return Health(workload.service.spec.health_check.unhealthy_threshold or _UNHEALTHY_AFTER)


def _service(workload: Workload) -> str:
    return f"{workload.spiffe_id.service}.{workload.spiffe_id.tenant}"


def _word(state: int | None) -> str:
    return resources.EndpointSpec.Health.Name(state).lower() if state is not None else "unknown"  # type: ignore[arg-type]


def _clear(workload: Workload) -> None:
    """Removes what lay there for a workload; its credentials are `Credentials`' to remove."""
    files.remove(workload.directory / "envoy")
    with contextlib.suppress(OSError):  # not empty yet: who empties it removes it
        (workload.directory / "bootstrap.json").unlink(missing_ok=True)
        workload.directory.rmdir()
