"""Holds metrics of calls and says how much memory they take: `python -m benchmarks.series ours|theirs SERIES`."""

import gc
import json
import os
import sys
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram

from benchmarks.process import rss_mib
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.metrics.duration import FAMILIES
from meshwarden.controlplane.gather.metrics.metrics import REQUEST_LABELS, Metrics
from meshwarden.sdk.red.histogram import BOUNDS_S, bucket_of
from meshwarden.v1.report_pb2 import CallStat

FAMILY = "rpc_server_call_duration_seconds"
SERVICES, METHODS = 40, 20
SECONDS = 0.012


def calls(series: int) -> Iterator[Call]:
    """Calls of as many series: as a mesh has them, a few words in many combinations."""
    durations = {bucket_of(SECONDS): 3}
    for number in range(series):
        rest, method = divmod(number, METHODS)
        rest, callee = divmod(rest, SERVICES)
        tenant, caller = divmod(rest, SERVICES)
        yield Call(
            source_tenant=f"tenant-{tenant}",
            source_service=f"service-{caller}",
            destination_tenant="platform",
            destination_service=f"service-{callee}",
            method=f"/bench.Service{callee}/Method{method}",
            status="OK",
            decision=CallStat.ALLOWED,
            reporter=CallStat.DESTINATION,
            revision=1,
            minute=0,
            count=3,
            sum_s=3 * SECONDS,
            durations=durations,
            source_region="eu",
            destination_region="eu",
        )


def ours(series: int) -> object:
    """Puts them into our metrics."""
    metrics = Metrics(series_per_tenant=series)
    metrics.add(calls(series))
    return metrics


def theirs(series: int) -> object:
    """Puts them into prometheus-client's own, under the same labels."""
    registry = CollectorRegistry()
    requests = Counter("requests", "Calls.", REQUEST_LABELS, registry=registry)
    durations = Histogram("seconds", "Durations.", FAMILIES[FAMILY][1], buckets=BOUNDS_S, registry=registry)
    for call in calls(series):
        source = (call.source_tenant, call.source_service, call.source_region)
        destination = (call.destination_tenant, call.destination_service, call.destination_region)
        counter = requests.labels(
            *source, *destination, call.method, call.status, call.outcome, "allowed", call.tenant, "destination"
        )
        counter.inc(call.count)
        histogram = durations.labels("grpc", call.method[1:], call.status, "", *source, *destination, call.tenant)
        for _ in range(call.count):
            histogram.observe(SECONDS)
    return registry, requests, durations


if __name__ == "__main__":
    before = rss_mib(os.getpid())
    kept = {"ours": ours, "theirs": theirs}[sys.argv[1]](int(sys.argv[2]))
    gc.collect()
    print(json.dumps({"mib": rss_mib(os.getpid()) - before}))
