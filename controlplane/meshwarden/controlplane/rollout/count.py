"""Calls of the nodes that have a rollout's changes, and of those that don't, as agents report them.

    /rollout/<tenant>/<name>/<digest of a control plane's name>    RolloutCount

Agents report to one control plane of a store each; all write what they have counted, and whoever judges adds it up. Of
a node with the changes only those calls count that ran under the revision which gave it
them, or a later one.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus
from google.protobuf.message import DecodeError

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.policy.endpoint import NOWHERE, Place
from meshwarden.controlplane.policy.mesh import Key, Mesh
from meshwarden.controlplane.policy.stage import has_changes, is_live
from meshwarden.controlplane.rollout.judge import NONE, Sample
from meshwarden.controlplane.rollout.line import Line, lines_of
from meshwarden.controlplane.store.follow import Followed
from meshwarden.controlplane.store.port import Delete, Op, Put, Store, StoreError
from meshwarden.v1.resources_pb2 import Rollout, RolloutComparison
from meshwarden.v1.rollout_service_pb2 import RolloutCount

PREFIX: Final = "/rollout/"
EVERY_S: Final = 1.0
Nodes = Callable[[], Mapping[str, Place]]
"""The nodes that have joined, and where each says that it is."""

log = structlog.get_logger()


@dataclass
class Pair:
    """Calls with the changes and without."""

    changed: Sample = NONE
    unchanged: Sample = NONE

    def add(self, other: "Pair") -> None:
        """Adds others."""
        self.changed += other.changed
        self.unchanged += other.unchanged


@dataclass
class Stage:
    """A stage that is counted.

    Attributes:
        rollout: as it is in this stage.
        lines: what is counted.
        counts: of each line.
    """

    rollout: Rollout
    lines: list[Line]
    counts: list[Pair]
    _of: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    _with: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, rollout: Rollout, mesh: Mesh) -> "Stage":
        """Begins with nothing counted."""
        lines = lines_of(rollout, mesh)
        made = cls(rollout, lines, [Pair() for _ in lines])
        for number, line in enumerate(lines):
            made._of.setdefault(("/".join(line.service), line.reporter), []).append(number)
        return made

    @property
    def mark(self) -> tuple[int, int]:
        """Tells stages of the same rollout's name apart."""
        return mark_of(self.rollout)

    @property
    def since(self) -> int:
        """The revision from which on nodes have the changes."""
        return self.rollout.status.stage_revision or self.rollout.metadata.record.revision

    def add(self, node: str, place: Place, calls: Iterable[Call]) -> bool:
        """Takes calls that a node has counted; whether any of them matter."""
        if place == NOWHERE:  # whether it has them can't be told yet
            return False
        known = self._with.get(node)
        if known is None:
            known = self._with[node] = has_changes(self.rollout, node, place)
        found = False
        for call in calls:
            for number in self._of.get((call.destination, call.reporter), ()):
                sample = self.lines[number].sample(call)
                if not known:
                    self.counts[number].unchanged += sample
                elif call.revision >= self.since:
                    self.counts[number].changed += sample
                found = True
        return found


def mark_of(rollout: Rollout) -> tuple[int, int]:
    """Which rollout of its name it is, and in which stage."""
    return rollout.status.start_time.ToNanoseconds(), rollout.status.stage


class Counts:
    """What is counted here, and what all control planes of the store have counted."""

    def __init__(self, store: Store, mesh: Mesh, nodes: Nodes, owner: str) -> None:
        """Counts nothing until `run`.

        Args:
            store: where control planes tell each other.
            mesh: the resources; `touch` says when they have changed.
            nodes: the nodes that have joined.
            owner: this control plane's name among those of the store, the same after a restart.
        """
        self._store, self._mesh, self._nodes = store, mesh, nodes
        self._digest = hashlib.sha256(owner.encode()).hexdigest()[:16]
        self._stages: dict[Key, Stage] = {}
        self._places: Mapping[str, Place] = {}
        self._told = Followed(store, PREFIX, _decode)
        self._live, self._dirty = asyncio.Event(), set[Key]()
        self._is_ready = False

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Tells others what is counted, until it is cancelled; has started once it knows what they have told."""
        async with anyio.create_task_group() as group:
            await group.start(self._told.run)
            self._is_ready = True
            self.touch()
            task_status.started()
            while True:
                await self._live.wait()
                self._places = self._nodes()
                try:
                    await self._write()
                except StoreError as error:
                    log.info("rollout.count.unwritten", reason=str(error))
                await anyio.sleep(EVERY_S)

    def touch(self) -> None:
        """Takes note of changed resources."""
        if not self._is_ready:
            return
        live = {key: rollout for key, rollout in self._mesh.rollouts.items() if is_live(rollout)}
        for key in self._stages.keys() - live.keys():
            del self._stages[key]
        for key, rollout in live.items():
            known = self._stages.get(key)
            if known is None or known.mark != mark_of(rollout):
                self._stages[key] = self._begun(key, rollout)
            else:
                known.rollout = rollout
        if live and not self._live.is_set():
            self._places = self._nodes()
        # Also for what is over: what was told of it goes.
        if live or self._own():
            self._live.set()

    def _own(self) -> list[str]:
        return [key for key in self._told.items if key.endswith(f"/{self._digest}")]

    def _begun(self, key: Key, rollout: Rollout) -> Stage:
        """A stage with what was counted of it before a restart."""
        stage = Stage.of(rollout, self._mesh)
        known = self._told.items.get(self._key(key))
        if known is not None and (known.start_ns, known.stage) == stage.mark:
            _add(stage.lines, stage.counts, known)
        return stage

    def take(self, node: str, calls: Iterable[Call]) -> None:
        """Takes what a node reports."""
        if not self._stages:
            return
        found = list(calls)
        place = self._places.get(node, NOWHERE)
        for key, stage in self._stages.items():
            if stage.add(node, place, found):
                self._dirty.add(key)

    def sums(self, key: Key) -> tuple[list[Line], list[Pair]]:
        """What all have counted of a rollout's present stage: its lines, and the calls of each."""
        stage = self._stages.get(key)
        if stage is None:
            return [], []
        total = [Pair(pair.changed, pair.unchanged) for pair in stage.counts]
        own, prefix = self._key(key), f"{PREFIX}{key.tenant}/{key.name}/"
        for name, told in self._told.items.items():
            if name.startswith(prefix) and name != own and (told.start_ns, told.stage) == stage.mark:
                _add(stage.lines, total, told)
        return stage.lines, total

    def _key(self, key: Key) -> str:
        return f"{PREFIX}{key.tenant}/{key.name}/{self._digest}"

    async def _write(self) -> None:
        dirty, self._dirty = self._dirty, set()
        wanted = {self._key(key) for key in self._stages}
        ops: list[Op] = [Delete(name) for name in self._own() if name not in wanted]
        for key in dirty & self._stages.keys():
            ops.append(Put(self._key(key), self._record(self._stages[key]).SerializeToString()))
        if ops:
            try:
                await self._store.commit(ops)
            except StoreError:
                self._dirty |= dirty
                raise
        if not self._stages:
            self._live.clear()

    @staticmethod
    def _record(stage: Stage) -> RolloutCount:
        start_ns, number = stage.mark
        record = RolloutCount(start_ns=start_ns, stage=number)
        for line, pair in zip(stage.lines, stage.counts, strict=True):
            record.comparisons.append(comparison(line, pair))
        return record


def comparison(line: Line, pair: Pair) -> RolloutComparison:
    """The numbers of a line."""
    return RolloutComparison(
        service="/".join(line.service),
        side=line.side,
        slo=line.slo,
        changed_calls=pair.changed.calls,
        changed_bad=pair.changed.bad,
        unchanged_calls=pair.unchanged.calls,
        unchanged_bad=pair.unchanged.bad,
    )


def pair_of(told: RolloutComparison) -> Pair:
    """What was counted."""
    return Pair(Sample(told.changed_calls, told.changed_bad), Sample(told.unchanged_calls, told.unchanged_bad))


def _add(lines: list[Line], counts: list[Pair], told: RolloutCount) -> None:
    """Adds what was told of the same lines."""
    known = {name_of(one): pair_of(one) for one in told.comparisons}
    for line, pair in zip(lines, counts, strict=True):
        if (found := known.get(name_of(comparison(line, pair)))) is not None:
            pair.add(found)


def name_of(told: RolloutComparison) -> tuple[str, int, str]:
    """Tells the comparisons of a rollout apart."""
    return told.service, told.side, told.slo


def _decode(key: str, value: bytes) -> RolloutCount:
    try:
        return RolloutCount.FromString(value)
    except DecodeError as error:
        raise ValueError(f"{key}: {error}") from None
