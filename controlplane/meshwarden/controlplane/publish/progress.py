"""How far a revision has come: which nodes and data planes have taken it, who lags, who has refused it. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final

from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.scope import scopes_of, touched
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.node_service_pb2 import DataPlaneRef, Nack
from meshwarden.v1.revision_service_pb2 import Lagging, Progress, ProgressShare, Rejection

MAX_LISTED: Final = 500
"""So many nodes that lag, and so many refusals, are named."""


class Outcome(IntEnum):
    """What has become of a revision somewhere, the worst last."""

    UNNEEDED = 0
    ACKNOWLEDGED = 1
    LAGGING = 2
    REJECTED = 3


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        revision: which revision; one of the mesh, or before the newest of it.
        time: when it was made, if that is known.
        impact: what it touches; None if that is not known, and it may be everything.
        mesh: the resources as they are.
        shown: whether a tenant's data planes count.
        is_whole: whether nodes count that have no data plane that does.
    """

    revision: int
    time: datetime | None
    impact: Impact | None
    mesh: Mesh
    shown: Callable[[str], bool]
    is_whole: bool

    def needs(self, node: str, ref: DataPlaneRef) -> bool:
        """Whether the revision changes anything for a data plane."""
        if self.impact is None:
            return True
        entry = self.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
        if entry is None:
            return node in self.impact.nodes
        try:
            scopes = scopes_of(ref, node, entry, externals=self.mesh.externals(ref.tenant))
        except ValueError:  # it gets nothing
            return False
        return any(touched(scope, self.impact) for scope in scopes)


def progress(states: Iterable[NodeState], question: Question) -> Progress:
    """Says how far a revision has come.

    Args:
        states: each node that has joined.
        question: what is asked of them.
    """
    answer = Progress(revision=question.revision)
    if question.time is not None:
        answer.time.FromDatetime(question.time)
    answer.nodes.SetInParent()
    answer.data_planes.SetInParent()
    for state in states:
        planes = [ref for ref in state.data_planes if question.shown(ref.tenant)]
        if planes or question.is_whole:
            _add(answer, state, planes, question)
    return answer


def _add(answer: Progress, state: NodeState, planes: Iterable[DataPlaneRef], question: Question) -> None:
    nacks: dict[str, list[Nack]] = {}
    for nack in state.nacks:
        nacks.setdefault(nack.data_plane, []).append(nack)
    outcomes = {ref.id: _outcome(state, ref, nacks.get(ref.id, ()), question) for ref in planes}
    whole = max(outcomes.values(), default=Outcome.UNNEEDED)
    if whole is Outcome.UNNEEDED and question.is_whole and _needs(state, question):
        whole = Outcome.ACKNOWLEDGED if state.acked_revision >= question.revision else Outcome.LAGGING
    _count(answer.nodes, whole)
    for outcome in outcomes.values():
        _count(answer.data_planes, outcome)
    late = [name for name, outcome in outcomes.items() if outcome is Outcome.LAGGING]
    if late or whole is Outcome.LAGGING:
        _put(answer, _lagging(state, late, answer))
    for name, outcome in outcomes.items():
        for nack in nacks[name] if outcome is Outcome.REJECTED else ():
            _put(answer, Rejection(node=state.node, nack=nack))


def _outcome(state: NodeState, ref: DataPlaneRef, nacks: Iterable[Nack], question: Question) -> Outcome:
    if not question.needs(state.node, ref):
        return Outcome.UNNEEDED
    answered = state.acked_revision
    if state.pending_revision and ref.id not in state.pending:
        answered = max(answered, state.pending_revision)
    if answered < question.revision:
        return Outcome.LAGGING
    # Who refuses something now may have taken the revision before.
    refused = [nack for nack in nacks if nack.taken_revision < question.revision]
    return Outcome.REJECTED if refused else Outcome.ACKNOWLEDGED


def _needs(state: NodeState, question: Question) -> bool:
    """Whether a node without a data plane that needs a revision needs it, for its entries; one never heard of may."""
    if question.impact is None or state.node in question.impact.nodes:
        return True
    return not state.data_planes and not state.acked_revision


def _count(share: ProgressShare, outcome: Outcome) -> None:
    name = outcome.name.lower()
    setattr(share, name, getattr(share, name) + 1)


def _lagging(state: NodeState, data_planes: Iterable[str], answer: Progress) -> Lagging:
    found = Lagging(
        node=state.node,
        data_planes=data_planes,
        acked_revision=state.acked_revision,
        connected=state.connected or bool(state.control_plane),
        control_plane=state.control_plane,
    )
    if answer.HasField("time"):
        found.since.CopyFrom(answer.time)
    if state.HasField("last_seen"):
        found.last_seen.CopyFrom(state.last_seen)
    return found


def _put(answer: Progress, item: Lagging | Rejection) -> None:
    if isinstance(item, Lagging) and len(answer.lagging) < MAX_LISTED:
        answer.lagging.append(item)
    elif isinstance(item, Rejection) and len(answer.rejections) < MAX_LISTED:
        answer.rejections.append(item)
    else:
        answer.omitted += 1
