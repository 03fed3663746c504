"""Dashboards of the mesh's own parts: nodes and control plane, identity, limits, objectives."""

from typing import Final

from board import Board, Panel, Query, Row, Variable
from expression import calls, share, some
from sampling import SAMPLING

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
    ),
)

_BUCKET: Final = "policy, tenant, service, method"
_BUCKET_NAME: Final = "{{policy}} {{tenant}} {{service}} {{method}}"

LIMITS: Final = Board(
    "meshwarden-limits",
    "Meshwarden / Limits",
    "What rate policies and our own bounds held back.",
    (
        Row(
            "Rate policies",
            (
                Panel(
                    "Limited, by calling tenant",
                    (Query(some("limited", 'reporter="destination"', "source_tenant"), "{{source_tenant}}"),),
                    "reqps",
                ),
                Panel(
                    "Limited, by service",
                    (
                        Query(
                            some("limited", 'reporter="destination"', "destination_tenant, destination_service"),
                            "{{destination_tenant}}/{{destination_service}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Share of a tenant's calls that are limited",
                    (Query(share("limited", 'reporter="destination"', "source_tenant"), "{{source_tenant}}"),),
                    "percentunit",
                ),
                Panel(
                    "What tenants call",
                    (Query(calls('reporter="destination"', "source_tenant"), "{{source_tenant}}"),),
                    "reqps",
                    width=24,
                ),
            ),
        ),
        Row(
            "Limits across the mesh",
            (
                Panel(
                    "Wanted and shared",
                    (
                        Query(f"sum by ({_BUCKET}) (meshwarden_quota_demand)", f"{_BUCKET_NAME}: wanted"),
                        Query(f"sum by ({_BUCKET}) (meshwarden_quota_share)", f"{_BUCKET_NAME}: share"),
                        Query(f"sum by ({_BUCKET}) (meshwarden_quota_limit)", f"{_BUCKET_NAME}: limit"),
                    ),
                    "short",
                    about="What points want of a limit, and what they were told to use; in its unit a second.",
                    width=12,
                ),
                Panel(
                    "Used by decision",
                    (
                        Query(
                            f"sum by ({_BUCKET}, unit, decision) (rate(meshwarden_quota_used_total[$__rate_interval]))",
                            f"{_BUCKET_NAME}: {{{{unit}}}} {{{{decision}}}}",
                        ),
                    ),
                    "short",
                    about="As the points say, in each policy's unit; shadowed is what shadow mode let through.",
                    width=12,
                ),
                Panel("Enforcement points", (Query("meshwarden_quota_points", _BUCKET_NAME),), width=12),
                Panel(
                    "Age of leases",
                    (
                        Query("max by (policy) (meshwarden_quota_lease_age_seconds)", "{{policy}}"),
                        Query("meshwarden_agent_quota_lease_age_seconds", "{{node}}: control plane"),
                    ),
                    "s",
                    about="Since the control plane heard of a policy's most silent point, and a node of the control"
                    " plane. Shares hold for three seconds.",
                    width=12,
                ),
                Panel(
                    "Let in beyond a limit",
                    (
                        Query(
                            f"sum by ({_BUCKET}, unit) (rate(meshwarden_quota_excess_total[$__rate_interval]))",
                            f"{_BUCKET_NAME} {{{{unit}}}}",
                        ),
                    ),
                    "short",
                    about="About what one limiter in one place would have refused, in each policy's unit a second.",
                    width=12,
                ),
                Panel(
                    "Said of limits and not believed",
                    (
                        Query(
                            "sum by (reason) (rate(meshwarden_quota_ignored_total[$__rate_interval])) or vector(0)",
                            "{{reason}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Calls at once",
            (
                Panel(
                    "At servers that find how many they take",
                    (
                        Query("sum by (policy, workload) (meshwarden_concurrency_limit)", "{{workload}}: limit"),
                        Query("sum by (policy, workload) (meshwarden_concurrency)", "{{workload}}: calls"),
                    ),
                    about="RatePolicies with adaptive; as the servers say themselves, once a second.",
                    width=12,
                ),
                Panel(
                    "Not let in there",
                    (
                        Query(
                            "sum by (tenant, criticality) (rate(meshwarden_concurrency_shed_total[$__rate_interval]))"
                            " or vector(0)",
                            "{{tenant}} {{criticality}}",
                        ),
                    ),
                    "reqps",
                    about="By who called and how much it mattered: UNAVAILABLE, and an error of the service.",
                    width=12,
                ),
                Panel(
                    "At the control plane and agents",
                    (
                        Query("meshwarden_server_concurrency_limit", "control plane: limit"),
                        Query("meshwarden_server_concurrency", "control plane: calls"),
                        Query("meshwarden_agent_concurrency_limit", "{{node}}: limit"),
                        Query("meshwarden_agent_concurrency", "{{node}}: calls"),
                    ),
                    width=12,
                ),
                Panel(
                    "Not let in there",
                    (
                        Query(
                            "sum by (criticality) (rate(meshwarden_server_shed_total[$__rate_interval]))",
                            "control plane {{criticality}}",
                        ),
                        Query(
                            "sum by (node, criticality) (rate(meshwarden_agent_shed_total[$__rate_interval]))",
                            "{{node}} {{criticality}}",
                        ),
                    ),
                    "reqps",
                    width=12,
                ),
            ),
        ),
        Row(
            "Our own bounds",
            (
                Panel(
                    "Telemetry received",
                    (
                        Query(
                            "sum by (stage, signal) (rate(meshwarden_telemetry_received_total[$__rate_interval]))",
                            "{{stage}} {{signal}}",
                        ),
                    ),
                    about="At every stage received = passed on + dropped.",
                    width=12,
                ),
                Panel(
                    "Telemetry passed on",
                    (
                        Query(
                            "sum by (stage, signal) (rate(meshwarden_telemetry_passed_total[$__rate_interval]))",
                            "{{stage}} {{signal}}",
                        ),
                    ),
                    width=12,
                ),
                Panel("Series of calls", (Query("meshwarden_series", "{{tenant}}"),), width=12),
                Panel(
                    "Samples of workloads' own metrics",
                    (Query("meshwarden_workload_samples or on () vector(0)", "{{tenant}}"),),
                    width=12,
                    about="A tenant has 5000; a point that would need more is dropped by the stage control.metrics.",
                ),
                Panel(
                    "Telemetry dropped",
                    (
                        Query(
                            "sum by (stage, signal, reason) "
                            "(rate(meshwarden_telemetry_dropped_total[$__rate_interval])) or on () vector(0)",
                            "{{stage}} {{signal}} {{reason}}",
                        ),
                    ),
                    width=12,
                ),
                Panel(
                    "Calls counted under overflow",
                    (
                        Query(
                            "sum by (tenant) (rate(meshwarden_series_overflow_total[$__rate_interval])) "
                            "or on () vector(0)",
                            "{{tenant}}",
                        ),
                    ),
                    "reqps",
                    width=12,
                ),
            ),
        ),
        SAMPLING,
    ),
)

OBJECTIVES: Final = Board(
    "meshwarden-slo",
    "Meshwarden / SLO",
    "Objectives, their error budgets and how fast these go. The rules come from `meshwarden slo rules`.",
    (
        Row(
            "Budgets",
            (
                Panel(
                    "Objectives", (Query('slo:objective:ratio{slo=~"$slo"}', "{{slo}}"),), "percentunit", "number", 24
                ),
                Panel(
                    "Left of the budget",
                    (Query('slo:budget_left:ratio{slo=~"$slo"}', "{{slo}}"),),
                    "percentunit",
                    width=12,
                    about="Of the whole window; below 0 it is overspent.",
                ),
                Panel(
                    "Alerts",
                    (
                        Query(
                            'count by (alertname, slo) (ALERTS{slo=~"$slo", alertstate="firing"}) or on () vector(0)',
                            "{{alertname}} {{slo}}",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Burn rates",
            tuple(
                Panel(
                    f"{title} (alert at {factor})",
                    (Query(f'slo:burn:rate{{slo=~"$slo", burn="{factor}"}}', "{{slo}} {{span}}"),),
                    width=12,
                    about="1 spends the budget exactly by the end of the window. An alert fires while both are above.",
                )
                for title, factor in (
                    ("An hour and five minutes", "14.4"),
                    ("Six hours and thirty minutes", "6"),
                    ("A day and two hours", "3"),
                    ("Three days and six hours", "1"),
                )
            ),
        ),
        Row(
            "Counts",
            (
                Panel(
                    "Calls in the last hour",
                    (Query('slo:events:increase{slo=~"$slo", burn="14.4", span="long"}', "{{slo}}"),),
                    width=12,
                ),
                Panel(
                    "Bad ones",
                    (Query('slo:errors:increase{slo=~"$slo", burn="14.4", span="long"}', "{{slo}}"),),
                    width=12,
                ),
            ),
        ),
    ),
    (Variable("slo", "slo:objective:ratio", "slo"),),
)
