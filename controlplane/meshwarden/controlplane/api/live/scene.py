"""What somebody is told of a look at the mesh: what they may see and ask for, the rest folded; and what has changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from meshwarden.controlplane.api.live.look import WINDOW, Look, seconds_since
from meshwarden.controlplane.insight.flow import Flow, Pair, folded
from meshwarden.controlplane.insight.fold import REST, fold
from meshwarden.v1 import console_service_pb2 as v1

EDGES_PER_SERVICE: Final = 4
_DIGITS: Final = 3
# Calls per second are ranked by their order of magnitude alone: who has a little more takes nobody's place.
_MAGNITUDES: Final = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)
_Told = TypeVar("_Told", bound=Message)


@dataclass(frozen=True)
class Scope:
    """What somebody watches.

    Attributes:
        tenant: only what concerns this tenant; "" for all.
        service: only this service and those at its edges; "" for all.
        most: how many services at most.
    """

    tenant: str
    service: str
    most: int


@dataclass(frozen=True)
class _Part(Generic[_Told]):
    """One kind of things: {name: what is told of it}."""

    things: Mapping[Any, _Told]

    def changed(self, since: "_Part[_Told] | None") -> tuple[list[_Told], list[Any]]:
        """What is new or other than before, and the names of what is gone."""
        if since is None:
            return list(self.things.values()), []
        before = since.things
        return (
            [thing for name, thing in self.things.items() if before.get(name) != thing],
            [name for name in before if name not in self.things],
        )


@dataclass(frozen=True)
class Scene:
    """What there is to tell of a scope."""

    frame: v1.WatchMeshResponse
    services: _Part[v1.MeshService]
    edges: _Part[v1.MeshEdge]
    nodes: _Part[v1.MeshNode]
    objectives: _Part[v1.MeshObjective]
    shown: frozenset[str] = field(repr=False)

    def since(self, before: "Scene | None") -> v1.WatchMeshResponse | None:
        """What to tell whoever knows the scene before, or nothing yet; None if all is as it was."""
        message = v1.WatchMeshResponse()
        message.CopyFrom(self.frame)
        message.whole = before is None
        # What is told, what is gone, what there is, what there was.
        parts: tuple[tuple[Any, Any, _Part[Any], _Part[Any] | None], ...] = (
            (message.services, message.gone_services, self.services, before.services if before else None),
            (message.edges, message.gone_edges, self.edges, before.edges if before else None),
            (message.nodes, message.gone_nodes, self.nodes, before.nodes if before else None),
            (message.objectives, message.gone_objectives, self.objectives, before.objectives if before else None),
        )
        is_changed = before is None or any(
            getattr(self.frame, name) != getattr(before.frame, name)
            for name in ("revision", "all_services", "all_edges")
        )
        for told, gone, part, known in parts:
            things, names = part.changed(known)
            told.extend(things)
            gone.extend(" ".join(name) if isinstance(name, tuple) else name for name in names)
            is_changed = is_changed or bool(things or names)
        return message if is_changed else None


def compose(look: Look, scope: Scope, frame: v1.WatchMeshResponse, before: Scene | None) -> Scene:
    """Makes the scene of a scope.

    Args:
        look: the mesh.
        scope: what of it.
        frame: what is the same for everybody: who tells.
        before: the scene before this one.
    """
    flows = {pair: flow for pair, flow in look.flows.items() if _concerns(scope, pair)}
    names = {name for name in look.services if _is_shown(scope, name)}
    ends = {end for pair in flows for end in pair}
    if scope.service:
        names = {name for name in names if name == scope.service or name in ends}
    objectives = {one.slo: one for one in look.objectives if one.service in names}
    burn = {one.service: 0.0 for one in objectives.values()}
    for one in objectives.values():
        burn[one.service] = max(burn[one.service], one.burn)
    ranks = _ranks(names | ends, flows, burn)
    place = fold(ranks, scope.most, before.shown if before is not None else frozenset())
    edges = folded(flows, place)
    kept = nlargest(scope.most * EDGES_PER_SERVICE, edges, key=lambda pair: (edges[pair].rank, pair))
    told = v1.WatchMeshResponse()
    told.CopyFrom(frame)
    told.revision, told.all_services, told.all_edges = look.revision, len(ranks), len(flows)
    told.now.FromDatetime(look.now)
    told.window.FromTimedelta(WINDOW)
    shown = {name: place(name) for name in ranks}
    return Scene(
        frame=told,
        services=_Part(_services(look, scope, shown, flows, burn)),
        edges=_Part({pair: _edge(pair, edges[pair]) for pair in sorted(kept)}),
        nodes=_Part(_nodes(look, scope)),
        objectives=_Part({name: _rounded(one) for name, one in objectives.items()}),
        shown=frozenset(name for name, at in shown.items() if name == at),
    )


def _is_shown(scope: Scope, name: str) -> bool:
    return scope.tenant in ("", name.partition("/")[0])


def _concerns(scope: Scope, pair: Pair) -> bool:
    if scope.service and scope.service not in pair:
        return False
    return _is_shown(scope, pair[0]) or _is_shown(scope, pair[1])


def _ranks(names: set[str], flows: Mapping[Pair, Flow], burn: Mapping[str, float]) -> dict[str, tuple[Any, ...]]:
    calls: dict[str, float] = dict.fromkeys(names, 0.0)
    fails: dict[str, int] = dict.fromkeys(names, 0)
    for pair, flow in flows.items():
        for end in pair:
            calls[end] += flow.rates[0]
            fails[end] = max(fails[end], 2 if flow.rates[1] > 0 else 1 if flow.rates[2] + flow.rates[3] > 0 else 0)
    return {
        name: (burn.get(name, 0.0) >= 1, fails[name], sum(calls[name] > bound for bound in _MAGNITUDES))
        for name in names
    }


def _services(
    look: Look, scope: Scope, shown: Mapping[str, str], flows: Mapping[Pair, Flow], burn: Mapping[str, float]
) -> dict[str, v1.MeshService]:
    told: dict[str, v1.MeshService] = {}
    regions: dict[str, set[str]] = {}
    seen: dict[str, set[str]] = {}
    rates: dict[str, list[float]] = {}
    for (source, destination), flow in flows.items():
        seen.setdefault(source, set()).update(flow.regions)
        into = rates.setdefault(shown[destination], [0.0] * 5)
        for number, rate in enumerate(flow.rates):
            into[number] += rate
        into[4] = max(into[4], flow.durations_s[1])
    for name in sorted(shown):
        at = shown[name]
        service = told.get(at)
        if service is None:
            service = told[at] = v1.MeshService(service=at)
        service.folded += at.endswith(f"/{REST}")
        # Of another tenant's service it is shown that it is at an edge, and no more.
        standing = look.services.get(name) if _is_shown(scope, name) else None
        if standing is not None:
            service.endpoints += standing.endpoints
            service.healthy_endpoints += standing.healthy
            service.external = standing.is_external
            service.burn = max(service.burn, _round(burn.get(name, 0.0)))
        known = standing.regions if standing is not None else ()
        regions.setdefault(at, set()).update(known or seen.get(name, ()))
    for at, service in told.items():
        service.regions.extend(sorted(regions[at] - {""}))
        calls, errors, denied, limited, p95 = map(_round, rates.get(at, [0.0] * 5))
        service.calls_per_s, service.errors_per_s, service.p95_s = calls, errors, p95
        service.denied_per_s, service.limited_per_s = denied, limited
    return told


def _edge(pair: Pair, flow: Flow) -> v1.MeshEdge:
    calls, errors, denied, limited = map(_round, flow.rates)
    half, most, nearly_all = map(_round, flow.durations_s)
    return v1.MeshEdge(
        source=pair[0],
        destination=pair[1],
        calls_per_s=calls,
        errors_per_s=errors,
        denied_per_s=denied,
        limited_per_s=limited,
        p50_s=half,
        p95_s=most,
        p99_s=nearly_all,
        mutual_tls=flow.mutual_tls,
        regions=flow.regions,
    )


def _nodes(look: Look, scope: Scope) -> dict[str, v1.MeshNode]:
    told: dict[str, v1.MeshNode] = {}
    for state, behind in look.nodes:
        workloads = [one for one in state.workloads if scope.tenant in ("", one.tenant)]
        planes = {one.id for one in state.data_planes if scope.tenant in ("", one.tenant)}
        if scope.tenant and not workloads and not planes:
            continue
        node = told[state.node] = v1.MeshNode(
            node=state.node,
            connected=state.connected or bool(state.control_plane),
            zone=state.zone,
            acked_revision=state.acked_revision,
            nacks=sum(not scope.tenant or nack.data_plane in planes for nack in state.nacks),
            workloads=len(workloads),
        )
        if behind is not None:
            node.behind.seconds = seconds_since(behind, look.now)
    return told


def _rounded(one: v1.MeshObjective) -> v1.MeshObjective:
    return v1.MeshObjective(
        slo=one.slo,
        service=one.service,
        objective=one.objective,
        calls_per_s=_round(one.calls_per_s),
        bad_per_s=_round(one.bad_per_s),
        burn=_round(one.burn),
    )


def _round(value: float) -> float:
    """To three digits: what changes less is no news."""
    return float(f"{value:.{_DIGITS}g}")
