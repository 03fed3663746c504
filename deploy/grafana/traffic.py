"""Dashboards of calls: of the mesh, of a tenant, of a service."""

from typing import Final

from board import Board, Panel, Query, Row, Variable
from expression import MADE, SEEN, SERVED, SOURCE, TAKEN, TENANT, calls, quantiles, share, some

OVERVIEW: Final = Board(
    "meshwarden-mesh",
    "Meshwarden / Mesh",
    "All calls of the mesh, and how it does.",
    (
        Row(
            "Now",
            (
                Panel("Calls", (Query(calls(SOURCE)),), "reqps", "number", 4),
                Panel("Failing", (Query(share("server_error", SOURCE, "")),), "percentunit", "number", 4),
                Panel("Denied", (Query(calls('decision="denied"')),), "reqps", "number", 4),
                Panel("Nodes", (Query("sum(meshwarden_nodes_connected)"),), "short", "number", 4),
                Panel("Workloads", (Query("sum(meshwarden_workloads)"),), "short", "number", 4),
                Panel(
                    "Next certificate ends in",
                    (Query('min(meshwarden_svid_expiry_seconds{kind!="root"})'),),
                    "s",
                    "number",
                    4,
                ),
            ),
        ),
        Row(
            "Calls, as callers see them",
            (
                Panel("By outcome", (Query(calls(SOURCE, "status_class"), "{{status_class}}"),), "reqps"),
                Panel("By calling tenant", (Query(calls(SOURCE, "source_tenant"), "{{source_tenant}}"),), "reqps"),
                Panel(
                    "Share that the service failed",
                    (
                        Query(
                            share("server_error", SOURCE, "destination_tenant, destination_service"),
                            "{{destination_tenant}}/{{destination_service}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel("How long gRPC calls take", quantiles("rpc_client_call_duration_seconds"), "s", exemplars=True),
                Panel("How long HTTP takes", quantiles("http_client_request_duration_seconds"), "s", exemplars=True),
                Panel(
                    "Between regions",
                    (
                        Query(
                            calls(SOURCE, "source_region, destination_region"),
                            "{{source_region}} → {{destination_region}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Who calls whom most",
                    (
                        Query(
                            "topk(20, "
                            + calls(SOURCE, "source_tenant, source_service, destination_tenant, destination_service")
                            + ")"
                        ),
                    ),
                    "reqps",
                    "rows",
                    24,
                ),
            ),
        ),
    ),
)

TENANTS: Final = Board(
    "meshwarden-tenant",
    "Meshwarden / Tenant",
    "What the services of a tenant call, and who calls them.",
    (
        Row(
            "Calls that it makes",
            (
                Panel(
                    "To whom",
                    (
                        Query(
                            calls(MADE, "destination_tenant, destination_service"),
                            "{{destination_tenant}}/{{destination_service}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel("With what outcome", (Query(calls(MADE, "status_class"), "{{status_class}}"),), "reqps"),
                Panel(
                    "How long gRPC takes",
                    quantiles("rpc_client_call_duration_seconds", 'mesh_source_tenant=~"$tenant"'),
                    "s",
                    exemplars=True,
                ),
            ),
        ),
        Row(
            "Calls that it takes",
            (
                Panel(
                    "By service",
                    (
                        Query(
                            calls('reporter="destination", destination_tenant=~"$tenant"', "destination_service"),
                            "{{destination_service}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "By caller",
                    (
                        Query(
                            calls(
                                'reporter="destination", destination_tenant=~"$tenant"',
                                "source_tenant, source_service",
                            ),
                            "{{source_tenant}}/{{source_service}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Refused by policies",
                    (
                        Query(
                            some(
                                "denied|limited",
                                'reporter="destination", destination_tenant=~"$tenant"',
                                "source_tenant, source_service",
                            ),
                            "{{source_tenant}}/{{source_service}}",
                        ),
                    ),
                    "reqps",
                ),
            ),
        ),
        Row(
            "What it has",
            (
                Panel(
                    "Workloads",
                    (Query('sum by (tenant) (meshwarden_workloads{tenant=~"$tenant"})', "{{tenant}}"),),
                ),
                Panel(
                    "Resources",
                    (Query('sum by (kind) (meshwarden_resources{tenant=~"$tenant"})', "{{kind}}"),),
                ),
                Panel(
                    "Series of calls",
                    (Query('sum by (tenant) (meshwarden_series{tenant=~"$tenant"})', "{{tenant}}"),),
                    about="What is beyond its share is counted under overflow.",
                ),
            ),
        ),
    ),
    (TENANT,),
)

SERVICE: Final = Board(
    "meshwarden-service",
    "Meshwarden / Service",
    "One service: who calls it, how often, how well.",
    (
        Row(
            "Now",
            (
                Panel("Calls", (Query(calls(TAKEN)),), "reqps", "number", 6),
                Panel("Failing", (Query(share("server_error", TAKEN, "")),), "percentunit", "number", 6),
                Panel("Denied", (Query(some("denied", TAKEN, "")),), "reqps", "number", 6),
                Panel("Limited", (Query(some("limited", TAKEN, "")),), "reqps", "number", 6),
            ),
        ),
        Row(
            "Calls, as the service sees them",
            (
                Panel(
                    "By caller",
                    (Query(calls(TAKEN, "source_tenant, source_service"), "{{source_tenant}}/{{source_service}}"),),
                    "reqps",
                ),
                Panel("By method", (Query(calls(TAKEN, "method"), "{{method}}"),), "reqps"),
                Panel("By status", (Query(calls(TAKEN, "status"), "{{status}}"),), "reqps"),
                Panel(
                    "How long calls take, gRPC",
                    quantiles("rpc_server_call_duration_seconds", SERVED),
                    "s",
                    exemplars=True,
                ),
                Panel(
                    "How long calls take, HTTP",
                    quantiles("http_server_request_duration_seconds", SERVED),
                    "s",
                    exemplars=True,
                ),
                Panel("By region", (Query(calls(TAKEN, "destination_region"), "{{destination_region}}"),), "reqps"),
            ),
        ),
        Row(
            "As its callers see it",
            (
                Panel(
                    "Failing, by caller",
                    (
                        Query(
                            share(
                                "server_error",
                                SEEN,
                                "source_tenant, source_service",
                            ),
                            "{{source_tenant}}/{{source_service}}",
                        ),
                    ),
                    "percentunit",
                    width=12,
                ),
                Panel(
                    "How long gRPC calls take",
                    quantiles("rpc_client_call_duration_seconds", SERVED),
                    "s",
                    width=12,
                    exemplars=True,
                ),
            ),
        ),
    ),
    (TENANT, Variable("service", 'meshwarden_requests_total{destination_tenant=~"$tenant"}', "destination_service")),
)
