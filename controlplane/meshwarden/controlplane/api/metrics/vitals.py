"""How the mesh itself does, for Prometheus: nodes, revisions, refusals, certificates, store and disk."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.slot import Roots, SlotState
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.api.metrics.edges import of_edges
from meshwarden.controlplane.api.metrics.progress import of_progress
from meshwarden.controlplane.api.metrics.quotas import of_quotas
from meshwarden.controlplane.api.metrics.rollouts import of_rollouts
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.identity.federation import Federation
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.quota.division import Division
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.overload import OverloadInterceptor
from meshwarden.v1.admin_service_pb2 import NodeState

ISSUED: Final = {
    "workload.sign": "workload",
    "node.attest": "node",
    "node.renew": "node",
    "operator.issue": "operator",
}
"""{event of the audit log: kind of certificate}"""
DENIED: Final = (
    "node.attest_denied",
    "node.renew_denied",
    "workload.sign_denied",
    "rpc.refused",
    "tls.refused",
    "data_plane.refused",
)
_CERTIFICATE: Final = ("kind", "node", "tenant", "workload")
_Rows = Iterable[tuple[Sequence[str], float]]


class Vitals(Collector):
    """Read on the event loop's thread, at each scrape."""

    def __init__(
        self,
        *,
        region: str,
        version: str,
        state_dir: Path,
        publisher: Publisher,
        sessions: Sessions,
        audit: CountedAuditLog,
        division: Division,
        overload: OverloadInterceptor,
        svid: Callable[[], X509Svid | None],
        roots: Callable[[], Roots],
        federation: Federation,
        clock: Callable[[], datetime],
    ) -> None:
        """Puts it together.

        Args:
            region: ours.
            version: ours.
            state_dir: holds the store.
            publisher: knows the resources.
            sessions: knows the nodes.
            audit: knows what was issued and refused.
            division: knows how limits are divided.
            overload: knows how many calls we take.
            svid: the control plane's own certificate.
            roots: the roots.
            federation: knows the other trust domains.
            clock: the present, aware.
        """
        self._about = {"region": region, "version": version}
        self._state_dir, self._publisher, self._sessions = state_dir, publisher, sessions
        self._division, self._overload = division, overload
        self._audit, self._svid, self._roots, self._clock = audit, svid, roots, clock
        self._federation = federation

    def collect(self) -> Iterable[Metric]:
        """Shows all there is."""
        nodes, now = self._sessions.states(), self._clock()
        yield _gauge(
            "meshwarden_build_info", "What runs, and where.", tuple(self._about), [(tuple(self._about.values()), 1)]
        )
        yield from self._of_store()
        yield from _of_nodes(nodes, now)
        yield from of_progress(nodes, self._publisher.recent)
        yield from of_edges(self._publisher.mesh, nodes, now)
        yield from of_rollouts(self._publisher.mesh.rollouts, now)
        yield from self._of_certificates(nodes, now)
        overdue = [((one.trust_domain,), one.overdue.total_seconds()) for one in self._federation.states()]
        text = "How long ago the bundle of another trust domain should have been fetched anew; 0 where all is well."
        yield _gauge("meshwarden_foreign_bundle_overdue_seconds", text, ("trust_domain",), overdue)
        yield from self._of_audit()
        yield from of_quotas(self._division)
        yield from self._of_calls()

    def _of_calls(self) -> Iterable[Metric]:
        limit, in_flight = self._overload.now
        text = "How many unary calls this control plane takes at once, as it has found."
        yield _gauge("meshwarden_server_concurrency_limit", text, (), [((), limit)])
        yield _gauge("meshwarden_server_concurrency", "How many there are.", (), [((), in_flight)])
        shed = CounterMetricFamily(
            "meshwarden_server_shed", "Calls that were not let in, by how much they matter.", labels=["criticality"]
        )
        for level in Criticality:
            shed.add_metric([level.name], self._overload.shed[level])
        yield shed

    def _of_store(self) -> Iterable[Metric]:
        yield _gauge("meshwarden_store_revision", "The newest revision.", (), [((), self._publisher.revision)])
        kinds = Counter((key.kind, key.tenant) for key in self._publisher.mesh.all())
        yield _gauge("meshwarden_resources", "Resources by kind and tenant.", ("kind", "tenant"), kinds.items())
        sizes = Counter[str]()
        for path in self._state_dir.iterdir():
            if ".sqlite" in path.name:
                sizes[path.name.partition(".")[0]] += path.stat().st_size
        yield _gauge(
            "meshwarden_database_size_bytes",
            "The size of each of our SQLite files, with what is not yet merged into it.",
            ("database",),
            [((name,), size) for name, size in sizes.items()],
        )
        disk = os.statvfs(self._state_dir)
        yield _gauge(
            "meshwarden_disk_free_bytes",
            "What is left for us on the disk of the state directory.",
            (),
            [((), disk.f_bavail * disk.f_frsize)],
        )
        yield _gauge("meshwarden_disk_size_bytes", "The size of that disk.", (), [((), disk.f_blocks * disk.f_frsize)])

    def _of_certificates(self, nodes: Sequence[NodeState], now: datetime) -> Iterable[Metric]:
        left: list[tuple[Sequence[str], float]] = []
        life: list[tuple[Sequence[str], float]] = []

        def add(labels: Sequence[str], begin: datetime, end: datetime) -> None:
            left.append((labels, (end - now).total_seconds()))
            life.append((labels, (end - begin).total_seconds()))

        for node in nodes:
            for state in node.workloads:
                if state.serial:
                    labels = ("workload", node.node, state.tenant, state.id)
                    add(labels, _moment(state.not_before), _moment(state.not_after))
        svid = self._svid()
        if svid is not None:
            add(("controlplane", "", "", ""), svid.not_before, svid.not_after)
        states = Counter(dict.fromkeys(SlotState, 0))
        for root in slot.own(self._roots()):
            states[root.state] += 1
            if root.state is SlotState.ACTIVE:
                add(("root", "", "", ""), root.not_before, root.not_after)
        rows = [((state.value,), count) for state, count in states.items()]
        yield _gauge("meshwarden_roots", "Roots that the mesh trusts, by state.", ("state",), rows)
        text = "Seconds until a certificate in use ends, as last reported; of roots, the one that signs."
        yield _gauge("meshwarden_svid_expiry_seconds", text, _CERTIFICATE, left)
        yield _gauge("meshwarden_svid_lifetime_seconds", "The whole life of that certificate.", _CERTIFICATE, life)

    def _of_audit(self) -> Iterable[Metric]:
        issued, denied = Counter[tuple[str, str]](), Counter[str](dict.fromkeys(DENIED, 0))
        events = Counter[str]({"node.banned_call": 0})  # an alert sees the first of them, then
        for kind in ISSUED.values():
            issued[kind, ""] = 0
        for (event, tenant), count in self._audit.counts.items():
            events[event] += count
            if event in ISSUED:
                issued[ISSUED[event], tenant] += count
            elif event in DENIED:
                denied[event] += count
        yield _counter("meshwarden_svids_issued", "Certificates issued.", ("kind", "tenant"), issued.items())
        yield _counter("meshwarden_denials", "What was refused, by event.", ("event",), _single(denied))
        yield _counter("meshwarden_audit_events", "Events of the audit log.", ("event",), _single(events))


def _of_nodes(nodes: Sequence[NodeState], now: datetime) -> Iterable[Metric]:
    connected = [node for node in nodes if node.connected]
    seen = [node for node in nodes if node.HasField("last_seen")]  # since the control plane started
    yield _gauge("meshwarden_nodes_connected", "Nodes with a session.", (), [((), len(connected))])
    yield _gauge(
        "meshwarden_node_connected",
        "Whether a node that has joined has a session.",
        ("node", "zone"),
        [((node.node, node.zone), node.connected) for node in nodes],
    )
    yield _gauge(
        "meshwarden_node_acked_revision",
        "The revision that all data planes of a node have taken or refused.",
        ("node",),
        [((node.node,), node.acked_revision) for node in seen],
    )
    yield _gauge(
        "meshwarden_node_silence_seconds",
        "How long ago a node was last heard of.",
        ("node",),
        [((node.node,), max(0.0, (now - _moment(node.last_seen)).total_seconds())) for node in seen],
    )
    yield _gauge(
        "meshwarden_node_clock_skew_seconds",
        "How far a node's clock was ahead of ours when its session began.",
        ("node",),
        [((node.node,), node.clock_skew.ToTimedelta().total_seconds()) for node in seen],
    )
    nacks = Counter((node.node, nack.type_url.rpartition(".")[2]) for node in nodes for nack in node.nacks)
    for node in nodes:
        nacks.setdefault((node.node, ""), 0)
    yield _gauge("meshwarden_nacks", "What data planes refuse at present.", ("node", "type"), nacks.items())
    workloads = Counter((node.node, state.tenant) for node in nodes for state in node.workloads)
    yield _gauge("meshwarden_workloads", "Workloads that run.", ("node", "tenant"), workloads.items())
    planes = Counter((node.node, ref.Dialect.Name(ref.dialect).lower()) for node in nodes for ref in node.data_planes)
    yield _gauge("meshwarden_data_planes", "Data planes that are fed.", ("node", "dialect"), planes.items())


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _single(counts: Mapping[str, int]) -> _Rows:
    return [((name,), count) for name, count in counts.items()]


def _gauge(name: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for values, value in rows:
        family.add_metric(list(values), value)
    return family
