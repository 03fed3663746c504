"""Daena on a whole mesh: rounds across three tenants, each one trace, each token counted, each decision verified.

The shop runs beside it, and one trace leads from there through all of them, and to the change that it ran under.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from meshwarden.controlplane.local.otlp import KeptSpan, OtlpReceiver, receiver

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROUNDS = 4
STEPS = {"round": 1, "scout": 1, "debate": 1, "commit": 1, "nbmf write": 1, "publish decisions": 1}
AGENTS = {"analyst.acme", "sceptic.globex", "scholar.daena"}
COUNTERS = {
    "agent_findings_total",
    "agent_votes_total",
    "bus_published_total",
    "council_rounds_total",
    "nbmf_hits_total",
    "nbmf_write_duration_seconds_count",
    "model_tokens_total",
}
COUNCIL = "/meshwarden.examples.daena.v1.Council"
WAY = ["web.acme", "orders.platform", "council.daena", "memory.daena"]
REVIEW = """\
kind: AccessPolicy
metadata: {tenant: daena, name: council-review}
spec: {service: council, allow: [{from: [{tenant: platform, service: orders}], methods: METHODS}]}
"""
INPUT, OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"


@pytest.fixture
def backend() -> Iterator[OtlpReceiver]:
    """Where the mesh sends its traces on to."""
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(receiver()) as kept:
        yield kept


class Convener:
    """Runs the convener with its identity."""

    def __init__(self, up: Any) -> None:
        self._up = up

    def __call__(self, *arguments: str, entry: str = "daena/convener") -> list[dict[str, Any]]:
        socket = next(agent["agent_socket"] for agent in self._up.up_json["agents"] if agent["node"] == "node-a")
        command = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", socket, "--entry", entry, "--"]
        command += [sys.executable, "-m", "meshwarden.examples.daena", "convene", *arguments]
        said = subprocess.run(
            command, env=self._up.environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert said.stdout, said.stderr
        return [json.loads(line) for line in said.stdout.splitlines()]

    def stats(self) -> dict[str, list[dict[str, Any]]]:
        """What the services have measured: {service: [point]}."""
        (found,) = self("--stats")
        return found


def value(span: KeptSpan, key: str) -> Any:
    for item in span.span.attributes:
        if item.key == key:
            return item.value.string_value or item.value.int_value
    return None


def tokens(spans: list[KeptSpan]) -> dict[str, int]:
    """The tokens that spans say: {input or output: count}."""
    return {
        "input": sum(value(span, INPUT) or 0 for span in spans),
        "output": sum(value(span, OUTPUT) or 0 for span in spans),
    }


def is_whole(spans: list[KeptSpan]) -> bool:
    """Whether one span has no parent, each other's parent is there, and every call has the spans of both its sides."""
    ids = {span.span.span_id for span in spans}
    tops = [span for span in spans if span.span.parent_span_id not in ids]
    sides = Counter(span.span.kind for span in spans if value(span, "rpc.method"))
    return len(tops) == 1 and len(ids) == len(spans) and sides[Span.SPAN_KIND_CLIENT] == sides[Span.SPAN_KIND_SERVER]


def test_rounds_across_tenants(start: Callable[..., Any], backend: OtlpReceiver, directory: Path) -> None:
    up = start("d", "--samples", "shop", "--samples", "daena", "--otlp-endpoint", backend.endpoint)
    up.wait_until_up()
    convene = Convener(up)
    # The sample asks the council as well; what is counted below is to stand still.
    asking = next(item["pid"] for item in up.up_json["workloads"] if item["name"] == "convener")
    os.kill(asking, signal.SIGSTOP)
    up.until(lambda: all_take_part(convene("--rounds", "1")))
    # What was published before an agent listens is not for it.
    up.until(lambda: len(of(convene.stats()["bus.daena"], "bus.queue.length")) == len(AGENTS))
    held = convene("--rounds", str(ROUNDS))
    assert [one.get("verified") for one in held] == [True] * ROUNDS, held
    assert len({one["record"] for one in held}) == len({one["trace_id"] for one in held}) == ROUNDS

    for one in held:
        assert_one_trace(up, backend, one)
    up.until(lambda: every_token_is_counted(backend, convene.stats()))
    # Nobody knows what the stand-in costs: its tokens are told of, and no money.
    up.until(lambda: costs(up) == {one: tokens(spans) for one, spans in by_service(backend).items()})
    stats = convene.stats()
    assert of(stats["bus.daena"], "bus.queue.dropped") == [0] * len(AGENTS)
    up.until(lambda: all_have_heard(backend, held))
    up.until(lambda: shown(up) == told(convene.stats()))
    assert_shop_to_memory(up, backend, directory)

    # Nobody may call what the policies don't say: an agent of the council's tenant sees it, one of another does not.
    (denied,) = convene("--rounds", "1", entry="daena/scholar")
    assert denied["error"].startswith("PERMISSION_DENIED")
    (unseen,) = convene("--rounds", "1", entry="acme/analyst")
    assert "council.daena: does not exist" in unseen["error"]

    # The memory keeps its records over a kill.
    memory = next(item for item in up.up_json["workloads"] if item["name"] == "memory")
    os.kill(memory["pid"], signal.SIGKILL)
    up.until(lambda: records(convene, held) == [True] * ROUNDS)

    os.kill(asking, signal.SIGCONT)
    # The backend is told, in a while, of all that the page counts.
    seen = calls_of_page(up)
    assert seen
    up.until(lambda: calls_sent(backend) >= seen)
    up.process.send_signal(signal.SIGTERM)
    assert up.wait_until_ended() == 0, up.said()
    assert up.left() == []
    for name in ("bus", "model", "memory", "analyst", "sceptic", "scholar", "council"):
        assert f"{name} stopped" in (up.state_dir / "logs" / f"{name}.log").read_text(), name


def assert_one_trace(up: Any, backend: OtlpReceiver, held: dict[str, Any]) -> None:
    """A round is one trace, from the convener through council, agents and model, and through memory and bus."""

    def trace() -> list[KeptSpan]:
        return [span for span in list(backend.spans) if span.trace_id == held["trace_id"]]

    up.until(lambda: is_whole(trace()))
    spans = trace()
    services = {span.resource["service.name"] for span in spans}
    assert services == {"convener.daena", "council.daena", "model.daena", "memory.daena", "bus.daena", *AGENTS}
    names = Counter(span.span.name for span in spans)
    assert {name: names[name] for name in STEPS} == STEPS
    by_agent = Counter(span.resource["service.name"] for span in calls_of_models(spans))
    assert by_agent == dict.fromkeys(AGENTS, 3)  # a finding, and a critique of each other's
    written = next(span for span in spans if span.span.name == "nbmf write")
    assert value(written, "nbmf.record.id") == held["record"]


def assert_shop_to_memory(up: Any, backend: OtlpReceiver, directory: Path) -> None:
    """One trace leads from web through orders and council to memory, and says which changes all of it ran under."""
    changes: dict[int, str] = {}
    asked: list[str] = []

    def crossed() -> list[KeptSpan]:
        changes.update([change(up, directory, len(asked))])
        answer = ask(op="trace", method="Review", id="4711", timeout_s=60)
        asked.append(answer["trace_id"])
        traces = [[span for span in list(backend.spans) if span.trace_id == one] for one in asked]
        # What was asked while the beginning of the mesh was on its way to all programs ran under that, too.
        good = [one for one in traces if is_whole(one) and way(one) == WAY and under(one) <= changes.keys()]
        return good[0] if good else []

    found: list[KeptSpan] = []
    with web(up, directory) as ask:
        # As the samples' own manifests have it.
        up.until(lambda: ask(op="grpc", method="Review", timeout_s=60)["codes"] == {"OK": 1})
        up.until(lambda: found.extend(crossed()) or found)
    ours = [span for span in found if value(span, "rpc.method") or value(span, "upstream_cluster")]
    assert {bool(value(span, "upstream_cluster")) for span in ours} == {True, False}, "programs and Envoys"
    assert all(value(span, "mesh.revision") for span in ours)
    ids = {span.span.span_id.hex() for span in found}
    up.until(lambda: {span["spanId"] for span in trace_of(up, found[0].trace_id)["spans"]} == ids)
    whole = trace_of(up, found[0].trace_id)
    assert not whole.get("incomplete")
    assert [span["name"] for span in whole["spans"] if "parentSpanId" not in span] == ["probe"]
    named = {span["attributes"].get("mesh.revision") for span in whole["spans"] if "attributes" in span} - {None}
    assert {int(revision) for revision in named} == under(found)
    for revision in under(found):
        assert_leads_to(up, revision, changes[revision])
    assert_says_what_the_mesh_made(up)


def assert_leads_to(up: Any, revision: int, trace_id: str) -> None:
    """Who knows a revision finds the trace of its change, to where the nodes have taken it."""

    def led() -> dict[str, Any]:
        return trace_of(up, "--revision", str(revision))

    up.until(lambda: [span["name"] for span in led()["spans"]].count("acknowledge") == 2)
    assert led()["traceId"] == trace_id
    # And from there to calls that it has come to.
    call = led()["calls"][0]["traceId"]
    assert str(revision) in {span.get("attributes", {}).get("mesh.revision") for span in trace_of(up, call)["spans"]}
    assert "UPDATED AccessPolicy daena/council-review" in json.dumps(led())


def assert_says_what_the_mesh_made(up: Any) -> None:
    """A revision that no person made leads to the trace of the node's report that did."""
    endpoint = json.loads(up.run("get", "Endpoint", "-o", "json").stdout)[0]
    node, revision = endpoint["spec"]["node"], endpoint["metadata"]["record"]["revision"]

    def said() -> list[str]:
        spans = trace_of(up, "--revision", revision)["spans"]
        made = (span["attributes"] for span in spans if span["name"] == "endpoints")
        by = [one["mesh.by"] for one in made if one["mesh.revision"] == revision]
        return by if "report" in {span["name"] for span in spans} else []

    up.until(said)
    assert said() == [f"the report of node {node}"]


@contextlib.contextmanager
def web(up: Any, directory: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """A program of acme's web that does what it is told."""
    socket = next(agent["agent_socket"] for agent in up.up_json["agents"] if agent["node"] == "node-a")
    command = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", socket, "--entry", "acme/web", "--"]
    command += [sys.executable, "-m", "meshwarden.examples.probe"]
    with (directory / "web.log").open("ab") as log:
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(**request: Any) -> dict[str, Any]:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps(request) + "\n")
        program.stdin.flush()
        answer: dict[str, Any] = json.loads(program.stdout.readline())
        assert "error" not in answer, answer
        return answer

    try:
        yield ask
    finally:
        program.kill()
        program.communicate()


def change(up: Any, directory: Path, number: int) -> tuple[int, str]:
    """Changes what orders may ask the council; returns the revision and the trace of the change."""
    methods = [f"{COUNCIL}/Hold", f"{COUNCIL}/Stats"][: 1 + (number + 1) % 2]
    path = directory / "review.yaml"
    path.write_text(REVIEW.replace("METHODS", json.dumps(methods)))
    said = up.run("apply", "-f", str(path))
    found = re.search(r"revision (\d+)\ntrace ([0-9a-f]{32})", said.stderr)
    assert found, said.stderr
    return int(found[1]), found[2]


def way(spans: list[KeptSpan]) -> list[str]:
    """The services that a trace leads through to where its decision is written."""
    known = {span.span.span_id: span for span in spans}
    here = next((span for span in spans if span.span.name == "nbmf write"), None)
    passed: list[str] = []
    while here is not None:
        service = here.resource["service.name"]
        if passed[:1] != [service]:
            passed.insert(0, service)
        here = known.get(here.span.parent_span_id)
    return passed


def under(spans: list[KeptSpan]) -> set[int]:
    """The revisions that a trace ran under, as its programs say."""
    return {revision for span in spans if (revision := value(span, "mesh.revision"))}


def trace_of(up: Any, *which: str) -> dict[str, Any]:
    """What the operator of the mesh is shown of a trace."""
    said = up.run("trace", *which, "-o", "json")
    shown: dict[str, Any] = json.loads(said.stdout) if said.returncode == 0 else {"spans": []}
    return shown


def every_token_is_counted(backend: OtlpReceiver, stats: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether the tokens on all spans are those that the model has counted, and those that the agents have."""
    counted = summed(stats["model.daena"], "model.tokens")
    used = Counter[str]()
    for agent in AGENTS:
        used.update(summed(stats[agent], "gen_ai.client.token.usage"))
    return tokens(calls_of_models(list(backend.spans))) == counted == used and counted["input"] > counted["output"] > 0


def by_service(backend: OtlpReceiver) -> dict[str, list[KeptSpan]]:
    """The calls of models, by the service that made them, "<tenant>/<service>"."""
    found: dict[str, list[KeptSpan]] = {}
    for span in calls_of_models(list(backend.spans)):
        service, _, tenant = span.resource["service.name"].partition(".")
        found.setdefault(f"{tenant}/{service}", []).append(span)
    return found


def costs(up: Any) -> dict[str, dict[str, int]]:
    """The tokens that the control plane tells of, of those whose price is unknown, by service."""
    said = up.run("cost", "--by", "tenant", "--by", "service", "-o", "json")
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    assert "usd" not in answer["total"]
    found = {}
    for one in answer.get("costs", []):
        counts = {"input": int(one["inputTokens"]), "output": int(one["outputTokens"])}
        assert int(one["unpricedTokens"]) == sum(counts.values())
        found[f"{one['tenant']}/{one['service']}"] = counts
    return found


def shown(up: Any) -> Counter[tuple[str, str]]:
    """What the control plane shows of the services' own counters: {(service, name): sum}."""
    with urllib.request.urlopen(up.up_json["metrics_url"], timeout=60) as response:  # noqa: S310 - our own, on loopback
        families = list(text_string_to_metric_families(response.read().decode()))
    found = Counter[tuple[str, str]]()
    for one in [sample for family in families for sample in family.samples]:
        if one.name in COUNTERS:
            found[f"{one.labels['mesh_service']}.{one.labels['mesh_tenant']}", one.name] += int(one.value)
    return found


def told(stats: dict[str, list[dict[str, Any]]]) -> Counter[tuple[str, str]]:
    """What the services themselves say of them."""
    found = Counter[tuple[str, str]]()
    for service, points in stats.items():
        for point in points:
            name = point["name"].replace(".", "_")
            if f"{name}_total" in COUNTERS:
                found[service, f"{name}_total"] += int(point["value"])
            elif f"{name}_seconds_count" in COUNTERS:
                found[service, f"{name}_seconds_count"] += point["count"]
    return found


def calls_of_page(up: Any) -> Counter[tuple[str, str]]:
    """The calls that the control plane's page counts: {(service called, method): calls}."""
    with urllib.request.urlopen(up.up_json["metrics_url"], timeout=60) as response:  # noqa: S310 - our own, on loopback
        families = list(text_string_to_metric_families(response.read().decode()))
    found = Counter[tuple[str, str]]()
    for one in [sample for family in families for sample in family.samples]:
        if one.name == "meshwarden_requests_total" and one.labels["reporter"] == "source":
            found[one.labels["destination_service"], one.labels["method"]] += int(one.value)
    return found


def calls_sent(backend: OtlpReceiver) -> Counter[tuple[str, str]]:
    """The same, as the backend was told last."""
    newest: dict[tuple[tuple[str, str], ...], int] = {}
    for item in list(backend.metrics):
        for metric in [metric for scope in item.scope_metrics for metric in scope.metrics]:
            if metric.name == "meshwarden.requests":
                for point in metric.sum.data_points:
                    newest[tuple((pair.key, pair.value.string_value) for pair in point.attributes)] = point.as_int
    found = Counter[tuple[str, str]]()
    for said, count in [(dict(key), count) for key, count in newest.items()]:
        if said["mesh.reporter"] == "source":
            found[said["mesh.destination.service"], said["mesh.method"]] += count
    return found


def all_have_heard(backend: OtlpReceiver, held: list[dict[str, Any]]) -> bool:
    """Whether every agent has heard of every decision, in a trace that leads back to the round's."""
    heard = [span for span in list(backend.spans) if span.span.name == "process decisions"]
    links = Counter(link.trace_id.hex() for span in heard for link in span.span.links)
    return all(links[one["trace_id"]] == len(AGENTS) for one in held)


def all_take_part(held: list[dict[str, Any]]) -> bool:
    return all(one.get("verified") and not one["absent"] for one in held)


def of(points: list[dict[str, Any]], name: str) -> list[float]:
    """The values of an instrument's series."""
    return [point["value"] for point in points if point["name"] == name]


def calls_of_models(spans: list[KeptSpan]) -> list[KeptSpan]:
    return [span for span in spans if value(span, "gen_ai.operation.name") == "chat"]


def summed(points: list[dict[str, Any]], name: str) -> Counter[str]:
    """The tokens of an instrument: {input or output: count}."""
    found = Counter[str]()
    for point in points:
        if point["name"] == name:
            found[point["attributes"]["gen_ai.token.type"]] += int(point["value"])
    return found


def records(convene: Convener, held: list[dict[str, Any]]) -> list[bool]:
    """Whether each decision is read back and has the hash that is its name."""
    read = convene("--read", *(one["record"] for one in held))
    return [hashlib.sha256(one.get("canonical", "").encode()).hexdigest() == one["record"] for one in read]
