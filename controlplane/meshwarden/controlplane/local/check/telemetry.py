"""trace, metrics and graph: what comes back up."""

import asyncio
import shutil
import urllib.request
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from meshwarden.controlplane.local.check.call import Probes, grpc_calls, http_calls, only
from meshwarden.controlplane.local.check.mesh import Mesh, until
from meshwarden.controlplane.local.check.result import CheckFailed, require
from meshwarden.v1.admin_service_pb2 import TraceSpan

ARRIVE_S = 20.0
CALLS = 50
# Of whose traces the samples' manifests have a quarter recorded.
CALLER = "web.globex"
CHANGE = "kind: Tenant\nmetadata: {name: check}\n"
# Reports come every second; a look takes a tenth of one.
STILL_LOOKS = 30
# (service, whether an Envoy says it): both programs and the Envoys beside them.
HOPS = {("web.acme", False), ("web.acme", True), ("billing.platform", True), ("billing.platform", False)}


async def trace(mesh: Mesh, probes: Probes) -> str:
    """One call leaves one trace across both programs and both Envoys, at the configured backend.

    While the backend waits for its secret, which lies in an OpenBao that is away, at the control plane.
    """
    trace_id = str((await probes.acme.ask("trace"))["trace_id"])
    errors = [backend.error for backend in (await mesh.status()).health.backends]
    waits = [error for error in errors if error.startswith("waits for its secret")]

    async def arrived() -> set[tuple[str, bool]] | None:
        spans = await mesh.trace(trace_id)
        seen = _kept_hops(spans) if waits else _hops(mesh, trace_id)
        if not seen >= HOPS:
            raise CheckFailed(f"only {sorted(seen)} of trace {trace_id} arrived")
        kept = {span.service for span in spans}
        require({"acme/web", "platform/billing"} <= kept, f"the control plane has only {sorted(kept)} of it")
        return seen

    await until(arrived, ARRIVE_S, "the trace is not complete")
    where = f", at the control plane: the backend {waits[0]}"[:120] if waits else ""
    return f"trace {trace_id}: spans of web.acme, its Envoy, billing's Envoy and billing.platform{where}"


async def change_trace(mesh: Mesh, probes: Probes) -> str:
    """A change leaves a trace, from the call that made it to every node's acknowledgement; its revision leads there."""
    trace_id, revision = await mesh.apply_traced(CHANGE)
    nodes = {node.node for node in (await mesh.status()).nodes if node.connected}
    wanted = {(stage, node) for node in nodes for stage in ("compile", "push", "acknowledge", "configure")}

    async def arrived() -> set[tuple[str, str]] | None:
        spans = await mesh.trace(trace_id)
        seen = {(span.name, span.node or span.attributes.get("mesh.node", "")) for span in spans}
        if not seen >= wanted:
            raise CheckFailed(f"trace {trace_id} lacks {sorted(wanted - seen)}")
        require(not any(span.parent_missing for span in spans), f"trace {trace_id} is not whole")
        return seen

    await until(arrived, ARRIVE_S, "the trace is not complete")
    found = await mesh.trace_of(revision)
    require(found == trace_id, f"revision {revision} leads to trace {found or 'none'}, not {trace_id}")
    await mesh.delete("tenant", "check")
    return f"trace {trace_id}: compiled for, pushed to, and acknowledged by {', '.join(sorted(nodes))}"


async def metrics(mesh: Mesh, probes: Probes) -> str:
    """The metrics are well-formed and count the samples' calls by tenant and decision."""
    url = str(mesh.up["metrics_url"])

    async def counted() -> str | None:
        text = await asyncio.to_thread(_scrape, url)
        samples = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "meshwarden_requests_total"
        ]
        wanted = [("acme", "orders", "allowed"), ("globex", "orders", "allowed"), ("acme", "billing", "allowed")]
        wanted += [("acme", "orders", "denied"), ("acme", "billing", "denied")]
        keys = ("tenant", "destination_service", "decision")
        found = {tuple(sample.labels[key] for key in keys) for sample in samples if sample.value > 0}
        missing = set(wanted) - found
        require(not missing, f"nothing is counted for {sorted(missing)}")
        return text

    text = await until(counted, ARRIVE_S, "the calls are not counted")
    said = await _promtool(text)
    return f"{len(text.splitlines())} lines; {said}; calls of acme and globex allowed, of the intruder denied"


async def graph(mesh: Mesh, probes: Probes) -> str:
    """The service graph counts the calls that were made, each of them once, though few of them leave a trace."""
    orders, billing = ("globex/web", "platform/orders"), ("globex/web", "platform/billing")
    # The sample's own calls would count as well: it has the same identity.
    with mesh.paused("globex-web"):
        before = await _at_rest(mesh, {orders: 0, billing: 0})
        known = _traces(mesh, CALLER)
        made = {
            orders: only(await grpc_calls(probes.globex, CALLS), "OK", "globex to orders"),
            billing: only(await http_calls(probes.globex, CALLS), "200", "globex to billing"),
        }
        after = await _at_rest(mesh, {edge: before[edge] + calls for edge, calls in made.items()})
    counted = {edge: after[edge] - before[edge] for edge in made}
    require(counted == made, f"made {made}, counted {counted}")
    recorded = len(_traces(mesh, CALLER) - known)
    require(recorded < sum(made.values()), f"{recorded} traces of {made}: sampling is off")
    told = (await mesh.graph())[billing]
    require(told.source_reports and told.destination_reports, "not both sides tell of the calls to billing")
    require(told.mutual_tls == told.PROVEN, "billing saw no certificate of globex")
    return f"{CALLS} calls of globex each to orders and billing, all counted once, {recorded} traced; both sides tell"


async def _at_rest(mesh: Mesh, least: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """How many calls each edge has, once it has at least so many and no more come in."""
    last: dict[tuple[str, str], int] = {}
    looks = 0

    async def still() -> dict[tuple[str, str], int] | None:
        nonlocal last, looks
        known = await mesh.graph()
        now = {edge: sum(known[edge].outcomes.values()) if edge in known else 0 for edge in least}
        looks = looks + 1 if now == last else 0
        last = now
        return now if looks >= STILL_LOOKS and all(now[edge] >= count for edge, count in least.items()) else None

    return await until(still, ARRIVE_S, "the calls do not come in, or do not end")


def _hops(mesh: Mesh, trace_id: str) -> set[tuple[str, bool]]:
    """Who has said something of the trace: {(service, whether it was an Envoy)}."""
    spans = [span for span in (mesh.handle.otlp.spans if mesh.handle.otlp else ()) if span.trace_id == trace_id]
    # Envoy marks its own spans so.
    proxied = [
        any(item.key == "component" and item.value.string_value == "proxy" for item in kept.span.attributes)
        for kept in spans
    ]
    return {(kept.resource.get("service.name", ""), proxy) for kept, proxy in zip(spans, proxied, strict=True)}


def _kept_hops(spans: Iterable[TraceSpan]) -> set[tuple[str, bool]]:
    """The same of what the control plane has."""
    services = [(".".join(reversed(span.service.split("/"))), span) for span in spans]
    return {(service, span.attributes.get("component", "") == "proxy") for service, span in services}


def _traces(mesh: Mesh, service: str) -> set[str]:
    """The traces of which a program of the service has recorded something that has come to the backend."""
    spans = mesh.handle.otlp.spans if mesh.handle.otlp else ()
    return {kept.trace_id for kept in spans if kept.resource.get("service.name", "") == service}


def _scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own loopback URL out of up.json
        return str(response.read().decode())


async def _promtool(text: str) -> str:
    if shutil.which("promtool") is None:
        return "prometheus_client's parser takes them (promtool is not installed)"
    process = await asyncio.create_subprocess_exec(
        "promtool",
        "check",
        "metrics",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(text.encode())
    if process.returncode != 0:
        raise CheckFailed(f"promtool check metrics: {output.decode(errors='replace').strip()}")
    return "promtool check metrics passes"
