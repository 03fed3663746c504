"""The gRPC server: one private socket for every service, and in front of it the mTLS listener.

Every RPC passes, in this order: the peer check and coarse admission (sdk.mtls.peer), a span of what changes something
(sdk.own_span), the schema's rules (api.validation), then the servicer, which authorises the tenant. Bounds: a
message of 4 MiB, a hundred streams a connection, what the front bounds, and so many unary calls at once as it can do
with (sdk.backpressure.overload), parted among nodes, tenants and operators.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from meshwarden.controlplane.api import node
from meshwarden.controlplane.identity.authorize import READING
from meshwarden.sdk.backpressure.concurrency import Concurrency
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.overload import OverloadInterceptor, by_name
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    audit_service_pb2,
    audit_service_pb2_grpc,
    console_service_pb2,
    console_service_pb2_grpc,
    cost_service_pb2,
    cost_service_pb2_grpc,
    data_plane_service_pb2,
    data_plane_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    operator_service_pb2,
    operator_service_pb2_grpc,
    preview_service_pb2,
    preview_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    region_service_pb2,
    region_service_pb2_grpc,
    report_pb2,
    report_pb2_grpc,
    resource_service_pb2,
    resource_service_pb2_grpc,
    revision_service_pb2,
    revision_service_pb2_grpc,
    rollout_service_pb2,
    rollout_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)

MESSAGE_BYTES = 4 << 20
LEAST_CALLS, MOST_CALLS = 16, 1024
"""Between which the limit on unary calls at once is found."""
# 5,000 streams opened at once were refused with grpc's defaults (research/perf.md §1).
PENDING_REQUESTS = 20_000
UNTAKEN_S = 300
"""How long a call may wait until it is taken; grpc's own 30 s is less than 5,000 large configurations need."""
# Without certificates the mesh ends; what is only looked at can be looked at later.
CRITICALITY = {
    **dict.fromkeys(
        ("Attest", "Renew", "SignWorkload", "RenewSvids", "Deny", "ChangeRoot", "BanNode", "EvictNode"),
        Criticality.CRITICAL_PLUS,
    ),
    "Export": Criticality.SHEDDABLE_PLUS,
    **dict.fromkeys(READING - {"GetStatus", "Get"}, Criticality.SHEDDABLE),
}


@dataclass(frozen=True)
class Servicers:
    """What the server serves."""

    admin: admin_service_pb2_grpc.AdminServiceServicer
    audit: audit_service_pb2_grpc.AuditServiceServicer
    console: console_service_pb2_grpc.ConsoleServiceServicer
    cost: cost_service_pb2_grpc.CostServiceServicer
    data_plane: data_plane_service_pb2_grpc.DataPlaneServiceServicer
    node: node_service_pb2_grpc.NodeServiceServicer
    operator: operator_service_pb2_grpc.OperatorServiceServicer
    preview: preview_service_pb2_grpc.PreviewServiceServicer
    quota: quota_service_pb2_grpc.QuotaServiceServicer
    region: region_service_pb2_grpc.RegionServiceServicer
    report: report_pb2_grpc.ReportServiceServicer
    resource: resource_service_pb2_grpc.ResourceServiceServicer
    revision: revision_service_pb2_grpc.RevisionServiceServicer
    rollout: rollout_service_pb2_grpc.RolloutServiceServicer
    session: session_service_pb2_grpc.SessionServiceServicer


def names() -> tuple[str, ...]:
    """The full names of our services."""
    files = (
        admin_service_pb2,
        audit_service_pb2,
        console_service_pb2,
        cost_service_pb2,
        data_plane_service_pb2,
        node_service_pb2,
        operator_service_pb2,
        preview_service_pb2,
        quota_service_pb2,
        region_service_pb2,
        report_pb2,
        resource_service_pb2,
        revision_service_pb2,
        rollout_service_pb2,
        session_service_pb2,
    )
    return tuple(service.full_name for file in files for service in file.DESCRIPTOR.services_by_name.values())


def traced() -> frozenset[str]:
    """The methods whose calls are worth a span, "/package.Service/Method": all unary ones that change something.

    Export does not count: each agent exports once a second, and spans among the rest.
    """
    files = (
        admin_service_pb2,
        node_service_pb2,
        operator_service_pb2,
        resource_service_pb2,
        revision_service_pb2,
        rollout_service_pb2,
    )
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming and not method.server_streaming and method.name not in READING
    )


def overload(chance: Callable[[], float]) -> OverloadInterceptor:
    """Makes what bounds the unary calls of nodes, of tenants' operators and of the mesh's, each for themselves."""
    places = Concurrency(LEAST_CALLS, MOST_CALLS, time.monotonic(), chance)
    return OverloadInterceptor(places, _caller, by_name(CRITICALITY, Criticality.CRITICAL))


def _caller(_: object) -> str:
    calling = peer.current()
    if calling is None:
        return ""  # a node that has no certificate yet
    known = calling.spiffe_id
    return f"tenant {known.tenant}" if known.tenant else str(known)


def add(servicers: Servicers, server: Any) -> None:
    """Adds all services to a gRPC server, or to what takes handlers in its place."""
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(servicers.admin, server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(servicers.audit, server)
    console_service_pb2_grpc.add_ConsoleServiceServicer_to_server(servicers.console, server)
    cost_service_pb2_grpc.add_CostServiceServicer_to_server(servicers.cost, server)
    data_plane_service_pb2_grpc.add_DataPlaneServiceServicer_to_server(servicers.data_plane, server)
    node.add_to(server, servicers.node)
    operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(servicers.operator, server)
    preview_service_pb2_grpc.add_PreviewServiceServicer_to_server(servicers.preview, server)
    quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(servicers.quota, server)
    region_service_pb2_grpc.add_RegionServiceServicer_to_server(servicers.region, server)
    report_pb2_grpc.add_ReportServiceServicer_to_server(servicers.report, server)
    resource_service_pb2_grpc.add_ResourceServiceServicer_to_server(servicers.resource, server)
    revision_service_pb2_grpc.add_RevisionServiceServicer_to_server(servicers.revision, server)
    rollout_service_pb2_grpc.add_RolloutServiceServicer_to_server(servicers.rollout, server)
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(servicers.session, server)


class Api:
    """The gRPC server on its private socket."""

    def __init__(
        self, inner_path: str, servicers: Servicers, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=list(interceptors),
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.server.max_pending_requests", PENDING_REQUESTS),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_REQUESTS),
                ("grpc.server_max_unrequested_time_in_server", UNTAKEN_S),
                ("grpc.max_concurrent_streams", 100),
                ("grpc.so_reuseport", 0),
                # A ping for each heartbeat, out and in through the front.
                ("grpc.http2.bdp_probe", 0),
            ],
        )
        add(servicers, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*names(), health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._server.add_insecure_port(f"unix:{inner_path}")

    async def start(self) -> None:
        """Starts to serve; health says so for the server as a whole and for each service."""
        await self._server.start()
        for name in ("", *names()):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, takes no new calls, and ends open ones after the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
