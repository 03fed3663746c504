"""Endpoints of nodes, kept as records: what a node reports, and what becomes of it when the node goes away.

One task writes, a node at a time, only what differs from the mesh, and guards each write by the revision that the mesh
knows. A node that was lost keeps its endpoints as UNHEALTHY until it comes back and says otherwise.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import anyio
import structlog

from meshwarden.controlplane.policy.mesh import Impact, Key
from meshwarden.controlplane.publish.fair import Queues
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import ABSENT, Conflict, Delete, Op, Put, Store, StoreError
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.resources_pb2 import Endpoint, EndpointSpec

_MAX_OPS: Final = 100
_MAX_NAME: Final = 63
_RETRY_S: Final = 0.5

log = structlog.get_logger()


class Endpoints:
    """Writes the endpoints of all nodes."""

    def __init__(self, publisher: Publisher, store: Store, *, region: str, clock: Callable[[], datetime]) -> None:
        self._publisher, self._store, self._region, self._clock = publisher, store, region, clock
        self._reported: dict[str, tuple[str, v1.EndpointReport]] = {}
        self._lost: set[str] = set()
        # Nodes to write, each tenant's in its turn: one that comes and goes all the time holds no other tenant up.
        self._due: Queues[str] = Queues(1)
        self._work = asyncio.Event()
        publisher.listen(self._changed)

    def report(self, node: str, zone: str, report: v1.EndpointReport) -> None:
        """Takes what a node reports: the whole set. Those of entries that don't name it are left out."""
        self._reported[node] = (zone, report)
        self._lost.discard(node)
        self._put_due(node)

    def lost(self, node: str) -> None:
        """The node is gone and won't be heard of for a while: nobody is to call it."""
        self._reported.pop(node, None)
        self._lost.add(node)
        self._put_due(node)

    def forget(self, node: str) -> None:
        """Somebody else hears of the node now: what it has is not ours to write."""
        self._reported.pop(node, None)
        self._lost.discard(node)

    def nodes(self) -> set[str]:
        """The nodes that have endpoints."""
        return self._publisher.mesh.endpoint_nodes()

    async def run(self) -> None:
        """Writes until it is cancelled."""
        await self._publisher.wait_loaded()
        while True:
            await self._work.wait()
            self._work.clear()
            while (found := self._due.pop()) is not None:
                tenant, node = found
                self._due.charge(tenant, 1)
                try:
                    await self._write(node)
                except Conflict as conflict:
                    # The mesh was behind, or somebody else wrote: look again once we know as much as the store.
                    await self._publisher.wait_revision(max(conflict.actual.values(), default=0))
                    self._put_due(node)
                except StoreError as error:
                    log.warning("endpoints.unwritten", node=node, reason=str(error), retry_s=_RETRY_S)
                    self._put_due(node)
                    await anyio.sleep(_RETRY_S)

    def _put_due(self, node: str) -> None:
        # Whose node it is by its entries, never by its word.
        mesh = self._publisher.mesh
        tenants = {entry.metadata.tenant for entry in mesh.entries_on(node)}
        tenants.update(key.tenant for key in mesh.endpoints_on(node))
        self._due.put(node, tenants or {""})
        self._work.set()

    def _changed(self, impact: Impact) -> None:
        # Also an operator may have deleted what a node keeps, or put its own in that place.
        for node in (impact.nodes | impact.kept) & (self._reported.keys() | self._lost):
            self._put_due(node)

    async def _write(self, node: str) -> None:
        ops = self._ops(node)
        for first in range(0, len(ops), _MAX_OPS):
            some, begun = ops[first : first + _MAX_OPS], self._clock()
            revision = await self._store.commit(some)
            self._tell(node, revision, some, begun)
            # What follows is computed from the mesh: let it know of this first.
            await self._publisher.wait_revision(revision)

    def _tell(self, node: str, revision: int, ops: Sequence[Op], begun: datetime) -> None:
        """Says what has made a revision, in its trace."""
        tenants = {model.parse_key(op.key).tenant for op in ops}
        is_lost = node in self._lost
        self._publisher.trails.made(
            revision,
            tenants.pop() if len(tenants) == 1 else "",
            f"the loss of node {node}" if is_lost else f"the report of node {node}",
            [_title(op) for op in ops],
            "" if is_lost or node not in self._reported else self._reported[node][1].trace_parent,
            begun,
        )

    def _ops(self, node: str) -> list[Op]:
        stored = self._publisher.mesh.endpoints_on(node)
        if node in self._lost:
            wanted = {key: _unhealthy(message.spec) for key, message in stored.items()}
        elif node in self._reported:
            wanted = self._wanted(node)
        else:
            return []
        ops: list[Op] = []
        for key, spec in wanted.items():
            known = stored.get(key)
            if known is None or known.spec != spec:
                ops.append(self._put(key, spec, known))
        ops += [Delete(_store_key(key), _revision(stored[key])) for key in stored.keys() - wanted.keys()]
        return ops

    def _wanted(self, node: str) -> dict[Key, EndpointSpec]:
        zone, report = self._reported[node]
        wanted: dict[Key, EndpointSpec] = {}
        for item in report.endpoints:
            entry = self._publisher.mesh.find("WorkloadEntry", item.tenant, item.entry)
            if entry is None or node not in entry.spec.nodes:
                log.warning("endpoint.refused", node=node, endpoint=item.id, entry=f"{item.tenant}/{item.entry}")
                continue
            spec = EndpointSpec(
                service=entry.spec.service,
                address=item.address,
                port=item.port,
                version=entry.spec.version,
                health=item.health or EndpointSpec.HEALTHY,
                node=node,
                entry=item.entry,
            )
            spec.locality.region, spec.locality.zone = self._region, zone
            wanted[self._key(node, item)] = spec
        return wanted

    def _key(self, node: str, item: v1.NodeEndpoint) -> Key:
        """`<node>-<id>`; where that is too long, or another node's already, with a digest that is this one's alone."""
        plain = f"{node}-{item.id}"
        taken = self._publisher.mesh.find("Endpoint", item.tenant, plain)
        if len(plain) <= _MAX_NAME and (taken is None or taken.spec.node == node):
            return Key("Endpoint", item.tenant, plain)
        digest = hashlib.sha256(f"{node}/{item.id}".encode()).hexdigest()[:12]
        return Key("Endpoint", item.tenant, f"{plain[:50].rstrip('-')}-{digest}")

    def _put(self, key: Key, spec: EndpointSpec, known: Endpoint | None) -> Put:
        message = Endpoint(kind="Endpoint", spec=spec)
        message.metadata.tenant, message.metadata.name = key.tenant, key.name
        record = message.metadata.record
        record.origin_region, record.epoch = self._region, 1
        record.update_time.FromDatetime(self._clock())
        return Put(_store_key(key), model.encode(model.wrap(message)), _revision(known) if known else ABSENT)


def _title(op: Op) -> str:
    ref = model.parse_key(op.key)
    action = "DELETED" if isinstance(op, Delete) else "CREATED" if op.expect == ABSENT else "UPDATED"
    if not isinstance(op, Put):
        return f"{action} {model.title(ref)}"
    stored = model.decode(op.value, 0).endpoint
    return f"{action} {model.title(ref)} {EndpointSpec.Health.Name(stored.spec.health)}"


def _unhealthy(spec: EndpointSpec) -> EndpointSpec:
    copy = EndpointSpec()
    copy.CopyFrom(spec)
    copy.health = EndpointSpec.UNHEALTHY
    return copy


def _store_key(key: Key) -> str:
    return f"{model.ROOT}{key.kind}/{key.tenant}/{key.name}"


def _revision(message: Endpoint) -> int:
    return int(message.metadata.record.revision)
