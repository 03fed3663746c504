"""PromQL that several dashboards share."""

from typing import Final

from board import Query, Variable

SOURCE: Final = 'reporter="source"'
"""Calls as those who make them see them."""
TAKEN: Final = 'reporter="destination", destination_tenant=~"$tenant", destination_service=~"$service"'
SEEN: Final = 'reporter="source", destination_tenant=~"$tenant", destination_service=~"$service"'
SERVED: Final = 'mesh_destination_tenant=~"$tenant", mesh_destination_service=~"$service"'
MADE: Final = 'reporter="source", source_tenant=~"$tenant"'
TENANT: Final = Variable("tenant", "meshwarden_requests_total", "destination_tenant")


def calls(matchers: str, by: str = "") -> str:
    """Calls a second, by some labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate(meshwarden_requests_total{{{matchers}}}[$__rate_interval]))"


def share(status_class: str, matchers: str, by: str = "") -> str:
    """The share of calls that came to something; 0 where none did."""
    every, some = calls(matchers, by), calls(f'{matchers}, status_class="{status_class}"', by)
    return f"{some} / {every} or {every} * 0"


def some(status_class: str, matchers: str, by: str = "") -> str:
    """Calls a second that came to something, a pattern; 0 where none did."""
    found = calls(f'{matchers}, status_class=~"{status_class}"', by)
    return f"{found} or {calls(matchers, by)} * 0"


def quantiles(name: str, matchers: str = "") -> tuple[Query, ...]:
    """How long half of the calls, 95 % and 99 % of them take."""
    buckets = f"sum by (le) (rate({name}_bucket{{{matchers}}}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({part}, {buckets})", f"p{part * 100:g}") for part in (0.5, 0.95, 0.99))
