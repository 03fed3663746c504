"""trace and metrics: what comes back up."""

import asyncio
import shutil
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from meshwarden.controlplane.local.check.call import Probes
from meshwarden.controlplane.local.check.mesh import Mesh, until
from meshwarden.controlplane.local.check.result import CheckFailed, require

ARRIVE_S = 20.0
# (service, whether an Envoy says it): both programs and the Envoys beside them.
HOPS = {("web.acme", False), ("web.acme", True), ("billing.platform", True), ("billing.platform", False)}


async def trace(mesh: Mesh, probes: Probes) -> str:
    """One call leaves one trace across both programs and both Envoys, at the configured backend."""
    trace_id = str((await probes.acme.ask("trace"))["trace_id"])

    async def arrived() -> set[tuple[str, bool]] | None:
        seen = _hops(mesh, trace_id)
        if not seen >= HOPS:
            raise CheckFailed(f"only {sorted(seen)} of trace {trace_id} arrived")
        return seen

    await until(arrived, ARRIVE_S, "the trace is not complete")
    return f"trace {trace_id}: spans of web.acme, its Envoy, billing's Envoy and billing.platform"


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


def _hops(mesh: Mesh, trace_id: str) -> set[tuple[str, bool]]:
    """Who has said something of the trace: {(service, whether it was an Envoy)}."""
    spans = [span for span in (mesh.handle.otlp.spans if mesh.handle.otlp else ()) if span.trace_id == trace_id]
    # Envoy marks its own spans so.
    proxied = [
        any(item.key == "component" and item.value.string_value == "proxy" for item in kept.span.attributes)
        for kept in spans
    ]
    return {(kept.resource.get("service.name", ""), proxy) for kept, proxy in zip(spans, proxied, strict=True)}


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
