"""The dashboard of limits: what rate policies and our own bounds held back."""

from typing import Final

from board import Board, Panel, Query, Row
from expression import calls, share, some
from sampling import SAMPLING

_BUCKET: Final = "policy, tenant, service, method"
_BUCKET_NAME: Final = "{{policy}} {{tenant}} {{service}} {{method}}"


def _period(what: str, by: str = "") -> str:
    """An amount by bucket, or what it is `by` something else; 0 where no policy has a period."""
    return f"sum by ({_BUCKET}) (meshwarden_quota_period_{what}){by.format(b=_BUCKET)} or on () vector(0)"


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
            "Amounts for a period",
            (
                Panel(
                    "Used of it",
                    (Query(_period("used", " / sum by ({b}) (meshwarden_quota_period_limit)"), _BUCKET_NAME),),
                    "percentunit",
                    about="Of what a bucket has for its hour, day or month.",
                    width=12,
                ),
                Panel(
                    "Given, used and left",
                    (
                        Query(_period("granted"), f"{_BUCKET_NAME}: given"),
                        Query(_period("used"), f"{_BUCKET_NAME}: used"),
                        Query(_period("left"), f"{_BUCKET_NAME}: left"),
                    ),
                    about="Given to points, used by their word, and what can still be given; in the policy's unit.",
                    width=12,
                ),
                Panel("At hand at enforcement points", (Query(_period("held"), _BUCKET_NAME),)),
                Panel(
                    "Lost",
                    (Query(_period("lost"), _BUCKET_NAME),),
                    about="Given, and nobody says that he has it: servers were killed, or are away.",
                ),
                Panel(
                    "Kept for other points",
                    (
                        Query(
                            'sum(rate(meshwarden_quota_ignored_total{reason="kept_for_others"}[$__rate_interval]))'
                            " or on () vector(0)",
                            "points held back",
                        ),
                    ),
                    about="How often a second a point was given less than it wanted: each other has a part.",
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
