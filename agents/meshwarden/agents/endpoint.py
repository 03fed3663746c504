"""Asks each workload that listens whether it takes calls, and reports those that do as endpoints.

An instance becomes an endpoint with its first good answer, is UNHEALTHY after `unhealthy_threshold` bad ones in a row,
and is gone with its process. Which were endpoints is kept on disk: an agent that starts again beside its programs does
not take them out of the mesh until it has asked.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from meshwarden.agents.cache import Cache
from meshwarden.agents.credentials import Credentials
from meshwarden.agents.place import Place, Places
from meshwarden.agents.probe import NotServing, OwnTls, ask_grpc, ask_http, ask_listening
from meshwarden.agents.workload import Registry, Workload
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as pb

_log = structlog.get_logger()
_ITEM: Final = "endpoints"
_INTERVAL_S: Final = 1.0
_THRESHOLD: Final = 3
_HTTP_PATH: Final = "/healthz"


class Health:
    """How one workload does, by its checks."""

    def __init__(self, state: pb.EndpointSpec.Health.ValueType | None = None) -> None:
        """Starts as `state`: None until the first success, since an endpoint that was never up is not reported."""
        self.state = state
        self._failures = 0

    def saw(self, healthy: bool, threshold: int) -> bool:
        """Takes the outcome of a check; whether the state has changed. `threshold` failures in a row are too many."""
        before = self.state
        self._failures = 0 if healthy else self._failures + 1
        if healthy:
            self.state = pb.EndpointSpec.HEALTHY
        elif self.state is not None and self._failures >= threshold:
            self.state = pb.EndpointSpec.UNHEALTHY
        return self.state != before


def endpoint_id(workload_id: str) -> str:
    """A DNS label for a workload's endpoint, the same as long as the workload's id is."""
    readable = "".join(char if char.isascii() and char.isalnum() else "-" for char in workload_id.lower())
    digest = hashlib.sha256(workload_id.encode()).hexdigest()[:10]
    return f"{readable[:50].strip('-')}-{digest}".lstrip("-")


class Endpoints:
    """The endpoints of the node."""

    def __init__(
        self,
        registry: Registry,
        places: Places,
        credentials: Credentials,
        cache: Cache,
        say: Callable[[Sequence[node_pb.NodeEndpoint]], None],
        clock: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        """Does nothing until `run`.

        Args:
            registry: whose workloads are asked.
            places: where they listen.
            credentials: with which they are asked.
            cache: where it is kept who was an endpoint.
            say: takes the whole set of endpoints; `Upstream.set_endpoints`.
            clock: aware, UTC.
            rng: spreads the checks.
        """
        self._registry = registry
        self._places = places
        self._credentials = credentials
        self._cache = cache
        self._say = say
        self._clock = clock
        self._rng = rng
        self._checked: dict[str, tuple[Workload, Health, anyio.CancelScope]] = {}
        self._kept = _load(cache)
        self._said: list[node_pb.NodeEndpoint] | None = None
        self._tasks: TaskGroup | None = None
        registry.listen(self.follow)

    def health(self, workload_id: str) -> pb.EndpointSpec.Health.ValueType | None:
        """How a workload does; None if it never took calls, or is none of this node."""
        known = self._checked.get(workload_id)
        return None if known is None else known[1].state

    def follow(self) -> None:
        """Takes the registry as it is now."""
        if self._tasks is None:
            return  # not yet: an empty set said too early would take programs that run out of the mesh
        workloads = self._registry.workloads
        for name, (workload, _, scope) in list(self._checked.items()):
            if workloads.get(name) is not workload:
                scope.cancel()
                del self._checked[name]
        for name, workload in workloads.items():
            if name not in self._checked and self._places.of(workload).listen_address:
                kept = pb.EndpointSpec.HEALTHY if self._kept.pop(name, 0) == workload.start_time else None
                health, scope = Health(kept), anyio.CancelScope()
                self._checked[name] = (workload, health, scope)
                self._tasks.start_soon(self._watch, workload, health, scope)
        self._report()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                self.follow()
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    async def _watch(self, workload: Workload, health: Health, scope: anyio.CancelScope) -> None:
        with scope:
            reason = ""
            while True:
                check = self._check_of(workload)
                before, reason = reason, await self._ask(workload, check)
                if health.saw(not reason, check.unhealthy_threshold or _THRESHOLD):
                    _log.info("endpoint changed", workload=workload.id, healthy=not reason, reason=reason)
                    self._report()
                elif reason and reason != before:
                    _log.debug("check failed", workload=workload.id, reason=reason)
                interval_s = check.interval.ToTimedelta().total_seconds() if check.HasField("interval") else _INTERVAL_S
                await anyio.sleep(interval_s * self._rng.uniform(0.9, 1.1))

    def _check_of(self, workload: Workload) -> pb.HealthCheck:
        present = self._registry.entries.get(workload.entry_name)
        service = workload.service if present is None else present.service
        return service.spec.health_check

    async def _ask(self, workload: Workload, check: pb.HealthCheck) -> str:
        """Why a workload is not to be called; empty if it is."""
        svid = self._credentials.svid(workload.id)
        if svid is None:
            return "it has no certificate"
        tls = OwnTls(svid, self._credentials.bundle(), self._clock)
        place = self._places.of(workload)
        try:
            if place.envoy_directory is None:
                await _ask(place.listen_address, workload, check, tls)
            else:
                await _ask(place.app_address, workload, check, None)
                await ask_listening(*_parts(place.listen_address), tls)
        except NotServing as error:
            return str(error)
        except OSError as error:
            return str(error) or type(error).__name__
        return ""

    def _report(self) -> None:
        found = []
        for name, (workload, health, _) in sorted(self._checked.items()):
            if health.state is not None:
                found.append(_endpoint(name, workload, self._places.of(workload), health.state))
        if found != self._said:
            self._said = found
            self._say(found)
            self._save()

    def _save(self) -> None:
        up = {name: held.start_time for name, (held, health, _) in self._checked.items() if health.state is not None}
        try:
            self._cache.save(_ITEM, json.dumps(up).encode())
        except OSError as error:
            _log.error("endpoints not kept", reason=str(error))


async def _ask(address: str, workload: Workload, check: pb.HealthCheck, tls: OwnTls | None) -> None:
    host, port = _parts(address)
    if workload.service.spec.protocol == pb.ServiceSpec.HTTP:
        await ask_http(host, port, check.http_path or _HTTP_PATH, tls)
    else:
        await ask_grpc(host, port, check.grpc_service, tls)


def _endpoint(
    name: str, workload: Workload, place: Place, state: pb.EndpointSpec.Health.ValueType
) -> node_pb.NodeEndpoint:
    metadata = workload.entry.metadata
    host, port = _parts(place.listen_address)
    return node_pb.NodeEndpoint(
        id=endpoint_id(name), tenant=metadata.tenant, entry=metadata.name, address=host, port=port, health=state
    )


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _load(cache: Cache) -> dict[str, int]:
    body = cache.load(_ITEM)
    if body is None:
        return {}
    try:
        return {str(name): int(start_time) for name, start_time in json.loads(body).items()}
    except (ValueError, TypeError, AttributeError) as error:
        cache.set_aside(_ITEM, str(error))
        return {}
