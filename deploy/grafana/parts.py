"""Dashboards of the mesh's own parts: nodes and control plane, identity."""

from typing import Final

from board import Board, Panel, Query, Row
from expression import calls

NODE: Final = Board(
    "meshwarden-node",
    "Meshwarden / Nodes and control plane",
    "Whether what was applied is in force, and what the mesh's own parts cost.",
    (
        Row(
            "Nodes",
            (
                Panel("Connected", (Query("meshwarden_node_connected", "{{node}}"),)),
                Panel(
                    "Revisions behind",
                    (
                        Query(
                            "meshwarden_store_revision - on (instance) group_right () meshwarden_node_acked_revision",
                            "{{node}}",
                        ),
                    ),
                ),
                Panel("Refused by data planes", (Query("sum by (node) (meshwarden_nacks)", "{{node}}"),)),
                Panel("Last heard of", (Query("meshwarden_node_silence_seconds", "{{node}}"),), "s"),
                Panel("Clock ahead of ours", (Query("meshwarden_node_clock_skew_seconds", "{{node}}"),), "s"),
                Panel("Workloads", (Query("sum by (node) (meshwarden_workloads)", "{{node}}"),)),
                Panel("Data planes", (Query("sum by (dialect) (meshwarden_data_planes)", "{{dialect}}"),), width=6),
                Panel(
                    "Waits to go up", (Query("sum by (node) (meshwarden_spool_bytes)", "{{node}}"),), "bytes", width=6
                ),
                Panel(
                    "Agents' processors",
                    (Query('rate(process_cpu_seconds_total{component="agent"}[$__rate_interval])', "{{node}}"),),
                    "percentunit",
                    width=6,
                ),
                Panel(
                    "Agents' memory",
                    (Query('process_resident_memory_bytes{component="agent"}', "{{node}}"),),
                    "bytes",
                    width=6,
                ),
            ),
        ),
        Row(
            "Rollouts",
            (
                Panel(
                    "Which, and since when in their phase",
                    (
                        Query(
                            "max by (tenant, rollout, phase) (meshwarden_rollout_phase_seconds) or on () vector(0)",
                            "{{tenant}}/{{rollout}} {{phase}}",
                        ),
                    ),
                    "s",
                    "rows",
                    about="Each is there until it is deleted, one that is over too.",
                    width=12,
                ),
                Panel(
                    "How long under way",
                    (
                        Query(
                            'meshwarden_rollout_phase_seconds{phase=~"PENDING|RUNNING|PAUSED"} or on () vector(0)',
                            "{{tenant}}/{{rollout}} {{phase}}",
                        ),
                    ),
                    "s",
                    about="In its stage, or paused. A quarter of an hour paused is an alert.",
                    width=12,
                ),
            ),
        ),
        Row(
            "Envoys",
            (
                Panel("Running", (Query("meshwarden_agent_envoy_up", "{{workload}}"),)),
                Panel("Started again", (Query("meshwarden_agent_envoy_restarts_total", "{{workload}}"),)),
                Panel("Memory", (Query("envoy_server_memory_allocated", "{{workload}}"),), "bytes"),
                Panel(
                    "Requests from callers",
                    (
                        Query(
                            "sum by (workload) (rate(envoy_http_downstream_rq_total[$__rate_interval]))",
                            "{{workload}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Connections from callers",
                    (Query("sum by (workload) (envoy_http_downstream_cx_active)", "{{workload}}"),),
                ),
                Panel(
                    "Connected to their agents",
                    (Query("min by (workload) (envoy_control_plane_connected_state)", "{{workload}}"),),
                ),
            ),
        ),
        Row(
            "Control plane",
            (
                Panel("Revision", (Query("meshwarden_store_revision", "{{instance}}"),)),
                Panel(
                    "Other regions, last heard of",
                    (Query("meshwarden_region_age_seconds or on () vector(0)", "{{region}}"),),
                    "s",
                ),
                Panel("Resources", (Query("sum by (kind) (meshwarden_resources)", "{{kind}}"),)),
                Panel("Databases", (Query("meshwarden_database_size_bytes", "{{database}}"),), "bytes", width=6),
                Panel(
                    "Disk free",
                    (Query("meshwarden_disk_free_bytes / meshwarden_disk_size_bytes", "{{instance}}"),),
                    "percentunit",
                    width=6,
                ),
                Panel(
                    "Processor",
                    (Query('rate(process_cpu_seconds_total{job="meshwarden"}[$__rate_interval])', "{{instance}}"),),
                    "percentunit",
                    width=6,
                ),
                Panel(
                    "Memory",
                    (Query('process_resident_memory_bytes{job="meshwarden"}', "{{instance}}"),),
                    "bytes",
                    width=6,
                ),
            ),
        ),
    ),
)

IDENTITY: Final = Board(
    "meshwarden-identity",
    "Meshwarden / Identity",
    "Certificates: issued, ending, refused.",
    (
        Row(
            "Certificates in use",
            (
                Panel(
                    "Ends in",
                    (Query('meshwarden_svid_expiry_seconds{kind="workload"}', "{{workload}} on {{node}}"),),
                    "s",
                ),
                Panel(
                    "Share of its life that is left",
                    (
                        Query(
                            'meshwarden_svid_expiry_seconds{kind!="root"} / meshwarden_svid_lifetime_seconds',
                            "{{kind}} {{workload}}",
                        ),
                    ),
                    "percentunit",
                    about="Renewed at half its life; below a quarter an alert fires.",
                ),
                Panel(
                    "Nodes' own end in",
                    (Query("meshwarden_agent_certificate_expiry_seconds", "{{node}}"),),
                    "s",
                ),
                Panel(
                    "Control plane's own ends in",
                    (Query('meshwarden_svid_expiry_seconds{kind="controlplane"}'),),
                    "s",
                    "number",
                    12,
                ),
                Panel(
                    "The first root ends in",
                    (Query('min(meshwarden_svid_expiry_seconds{kind="root"})'),),
                    "s",
                    "number",
                    12,
                ),
            ),
        ),
        Row(
            "What was issued and refused",
            (
                Panel(
                    "Issued, an hour",
                    (Query("sum by (kind) (increase(meshwarden_svids_issued_total[1h]))", "{{kind}}"),),
                ),
                Panel(
                    "Issued to tenants",
                    (
                        Query(
                            'sum by (tenant) (meshwarden_svids_issued_total{kind="workload", tenant!=""})', "{{tenant}}"
                        ),
                    ),
                ),
                Panel("Refused", (Query("sum by (event) (meshwarden_denials_total)", "{{event}}"),)),
                Panel(
                    "Rotated, an hour",
                    (
                        Query(
                            'sum by (node) (resets((-meshwarden_svid_expiry_seconds{kind="workload"})[1h:30s]))',
                            "{{node}}",
                        ),
                    ),
                    about="How often a certificate in use was replaced by a newer one. One of an hour is, twice.",
                ),
                Panel(
                    "Events of the audit log",
                    (Query("sum by (event) (meshwarden_audit_events_total)", "{{event}}"),),
                ),
                Panel(
                    "Calls denied, by caller",
                    (
                        Query(
                            calls('decision="denied"', "source_tenant, source_service, destination_service"),
                            "{{source_tenant}}/{{source_service}} → {{destination_service}}",
                        ),
                    ),
                    "reqps",
                ),
            ),
        ),
        Row(
            "Calls in the clear",
            (
                Panel(
                    "Services take them for",
                    (
                        Query(
                            "meshwarden_permissive_expiry_seconds or on () vector(0)",
                            "{{tenant}}/{{service}}",
                        ),
                    ),
                    "s",
                    about="Below 0 where the day is over and the service still says that it does.",
                    width=12,
                ),
                Panel(
                    "Addresses that called so within seven days",
                    (
                        Query(
                            "sum by (tenant, service) (meshwarden_permissive_callers) or on () vector(0)",
                            "{{tenant}}/{{service}}",
                        ),
                    ),
                    about="As agents saw since they started.",
                    width=12,
                ),
            ),
        ),
    ),
)
