"""A workload that does what it is told: JSON objects, one a line, on standard input; one answer a line on output.

    {"op": "grpc", "target": "xds:///orders", "method": "Get", "count": 2000}
    {"op": "http", "host": "billing.platform", "path": "/invoices/1", "count": 2000}

Both take also, with these defaults: `"count": 1`, `"rate": 0` (calls a second in all; 0: as fast as they go),
`"concurrency": 1` (calls at a time), `"duration_s": 0` (ends after so long, whatever the count; with a count of 0 by
this alone), `"timeout_s": 5`. `grpc` takes `"metadata": {}`, `"id": "1"` and `"channel": "default"`: channels of
different names share no connection, and stay open from request to request. `method` is "Get", "List", "Review" or
"Watch"; a Watch reads `"messages": 1` of its stream, `"interval_ms": 10` apart. `http` takes `"headers": {}` and
`"connection": "default"`: connections likewise, one per name and call at a time. The answer:

    {"op": "grpc", "count": 2000, "codes": {"OK": 2000}, "versions": {"v1": 1800, "v2": 200},
     "instances": {"a": 900, …}, "tenants": {"acme": 2000}, "spiffe_ids": {"spiffe://…": 2000},
     "errors": ["UNAVAILABLE: …", the first 10 different ones],
     "failed": [{"at_s": 0.51, "code": "…"}, the first 100],
     "trailing": [{"retry-after": "1"}, of the first 10 failed],
     "duration_s": 1.9, "latency_ms": {"p50": 0.8, "p99": 2.1}}

`http` counts statuses ("200", "403") or names of exceptions as codes. It has no versions and no trailing metadata, but
`"bodies": [the first 5, as text]` and `"reconnects": 0`; `tenants` and `spiffe_ids` are what billing says.

    {"op": "steady_start", "id": "x", "call": {"op": "grpc", "rate": 20, …}}    → {"op": "steady_start", "id": "x"}
    {"op": "steady_stop", "id": "x"}    → the answer of the call, which went on until now; its count is 0 by default
    {"op": "trace"}                     → {"op": "trace", "trace_id": "32 digits",
                                          "codes": {"orders": "OK", "billing": "200"}}:
                                          one call to each in one trace; "target", "method", "id",
                                          "host", "path" and "timeout_s" as above
    {"op": "identity"}                  → {"op": "identity", "spiffe_id", "tenant", "service", "revision", "serial",
                                          "not_before", "not_after"}; times in RFC 3339

What can't be done is answered `{"op": …, "error": "why"}`, and the next line is read. The end of the input ends it.
"""
