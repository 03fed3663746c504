"""Follows the registry: says which data planes this node has, and keeps an Envoy beside each workload that wants one.

An Envoy holds its workload's certificate and lends it to whoever may open its socket. So it is started only when the
program was seen to be the one that its entry wants.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup

from meshwarden.agents.bootstrap import NodePlace
from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.agents.envoy.supervisor import EnvoyMissing, EnvoyPlan, Supervisor, find_envoy
from meshwarden.agents.place import Places, data_planes
from meshwarden.agents.workload import Registry, Workload
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import workload_service_pb2 as workload_pb

_log = structlog.get_logger()


class Interest:
    """The node's data planes."""

    def __init__(
        self,
        registry: Registry,
        places: Places,
        place: NodePlace,
        say: Callable[[Sequence[node_pb.DataPlaneRef]], None],
        rng: random.Random,
        find: Callable[[], Path] = find_envoy,
    ) -> None:
        """Does nothing until `run`.

        Args:
            registry: whose workloads are followed.
            places: where they are.
            place: of the node.
            say: takes the whole set of data planes; `Upstream.set_interest`.
            rng: for the backoff of Envoys.
            find: the Envoy binary; raises EnvoyMissing.
        """
        self._registry = registry
        self._places = places
        self._place = place
        self._say = say
        self._rng = rng
        self._find = find
        self._envoys: dict[str, tuple[Workload, Supervisor]] = {}
        self._missing = False
        self._refs: dict[str, node_pb.DataPlaneRef] = {}
        self._tasks: TaskGroup | None = None
        registry.listen(self.follow)

    def ref(self, data_plane: str) -> node_pb.DataPlaneRef | None:
        """The data plane of an id; None if this node has none such."""
        return self._refs.get(data_plane)

    @property
    def envoys(self) -> Mapping[str, Supervisor]:
        """The supervised Envoys: `{workload id: Supervisor}`."""
        return {name: supervisor for name, (_, supervisor) in self._envoys.items()}

    def envoy_pid(self, workload_id: str) -> int:
        """The process of a workload's Envoy; 0 if it has none at the moment."""
        known = self._envoys.get(workload_id)
        return 0 if known is None else known[1].pid

    def states(self) -> list[workload_pb.EnvoyState]:
        """How the Envoys do, for `status`."""
        found = []
        for name, (workload, supervisor) in sorted(self._envoys.items()):
            place = self._places.of(workload)
            found.append(
                workload_pb.EnvoyState(
                    name=name,
                    admin_socket=str(place.admin),
                    outbound=str(place.outbound),
                    inbound=place.listen_address,
                    pid=supervisor.pid,
                    restarts=supervisor.restarts,
                )
            )
        return found

    def follow(self) -> None:
        """Takes the registry as it is now."""
        workloads = self._registry.workloads
        self._places.keep(workloads)
        refs: dict[str, node_pb.DataPlaneRef] = {}
        for workload in workloads.values():
            for ref in data_planes(workload, self._places.of(workload)):
                refs[ref.id] = ref
        self._refs = refs
        if self._tasks is None:
            return  # not yet: an empty set said too early would look like workloads that are gone
        self._say([refs[name] for name in sorted(refs)])
        self._follow_envoys(workloads, self._tasks)

    async def run(self) -> None:
        """Runs until it is cancelled; then the Envoys end too."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                self.follow()
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    def _follow_envoys(self, workloads: Mapping[str, Workload], tasks: TaskGroup) -> None:
        for name, (workload, present) in list(self._envoys.items()):
            if workloads.get(name) is not workload:
                present.stop()
        for name, workload in workloads.items():
            # One whose predecessor still drains waits for it: they share ports and sockets.
            if workload.has_envoy and name not in self._envoys and self._registry.is_admitted(name):
                supervisor = self._supervisor(workload)
                if supervisor is not None:
                    self._envoys[name] = (workload, supervisor)
                    tasks.start_soon(self._supervise, name, supervisor)

    async def _supervise(self, name: str, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        finally:
            del self._envoys[name]
        self.follow()

    def _supervisor(self, workload: Workload) -> Supervisor | None:
        place = self._places.of(workload)
        if place.envoy_directory is None or place.admin is None:
            return None
        try:
            binary = self._find()
        except EnvoyMissing as error:
            if not self._missing:
                _log.error("no envoy", workload=workload.id, reason=str(error))
            self._missing = True
            return None
        identity = workload.spiffe_id
        bootstrap = envoy_bootstrap(
            f"{workload.id}/envoy",
            f"{identity.service}.{identity.tenant}",
            self._place.region,
            self._place.zone,
            self._place.agent_socket,
            place.admin,
        )
        plan = EnvoyPlan(workload.id, bootstrap, place.envoy_directory, workload.uid, workload.gid)
        return Supervisor(plan, lambda pid: self._registry.adopt(pid, workload.id), self._rng, binary)
