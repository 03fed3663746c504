"""How many traces Envoys record: as the service where a trace begins says, live, and whatever callers' headers want.

Real Envoys beside programs of a real agent. Spans are counted as they come up, calls as the agent counts them.
"""

import asyncio
import contextlib
import http.client
import json
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import node_service_pb2 as node_pb

sys.path.insert(0, str(Path(__file__).parent))
from policy_world import HTTP, Policy, healthy, settled

pytestmark = pytest.mark.timeout(180)
CALLER = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-"
# What Envoy knows beside traceparent: it once took each of these for a wish to be traced.
WISHES = [
    {"x-client-trace-id": "1"},
    {"x-envoy-force-trace": "true"},
    *({"x-request-id": f"5f3a4bd1-1d2f-{nibble}d11-8d4e-8f4e1d2c3b4a"} for nibble in "9ab"),
]


class Open(http.client.HTTPConnection):
    """A program's open connection to its Envoy."""

    def __init__(self, path: str) -> None:
        super().__init__("billing.platform", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)

    def ask(self, path: str, headers: dict[str, str] | None = None) -> int:
        self.request("GET", path, headers=headers or {})
        answer = self.getresponse()
        answer.read()
        return answer.status


class World:
    """acme/shop, which calls platform/billing, each beside an Envoy."""

    def __init__(self, agent: Any, policy: Policy, until: Any) -> None:
        self.agent, self.policy, self.until = agent, policy, until
        self.calls = 0
        self._socket = ""
        self._links: list[Open] = []

    async def start(self) -> None:
        billing = {
            "tenant": "platform",
            "name": "billing",
            "protocol": "HTTP",
            "port": free_port(random.SystemRandom()),
            "envoy": True,
        }
        shop = {"tenant": "acme", "name": "shop", "protocol": "HTTP", "envoy": True}
        self.policy.declare({**billing, "check": {"httpPath": "/ok"}}, shop)
        await self.agent.ready()
        self.agent.exec("billing", sys.executable, "-c", HTTP)
        await self.until(healthy(self.policy, "billing"), "billing takes calls")
        caller = self.agent.exec("shop", sys.executable, "-c", CALLER)
        self.policy.allow("platform/billing", "acme/shop")
        self._socket = json.loads(await asyncio.to_thread(caller.stdout.readline))["MESHWARDEN_OUTBOUND"]
        await self.until(self._answers, "billing answers shop")

    def _answers(self) -> bool:
        self.policy.follow()
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(self._socket):
                return False
        with contextlib.closing(Open(self._socket)) as link:
            status = link.ask("/first")
        self.calls += status == 200
        return status == 200

    def open(self) -> Open:
        """A connection that stays open until the end."""
        self._links.append(Open(self._socket))
        return self._links[-1]

    def close(self) -> None:
        for link in self._links:
            link.close()

    async def ask(self, link: Open, path: str, count: int, headers: dict[str, str] | None = None) -> None:
        """Calls billing so many times on one connection."""
        for _ in range(count):
            assert await asyncio.to_thread(link.ask, path, headers) == 200
        self.calls += count

    async def sample(self, **ratios: float) -> None:
        """Says how many traces of services are recorded, and waits until their Envoys know."""
        entries = node_pb.EntrySet()
        entries.CopyFrom(self.policy.control_plane.state["entries"].entries)
        for service in entries.services:
            if (ratio := ratios.get(service.metadata.name)) is not None:
                service.spec.trace_sampling.ratio = ratio
        self.policy.control_plane.push(entries=entries)
        for envoy in (await self.agent.status())["envoys"]:
            name = envoy["name"].partition("/")[2].partition("#")[0]
            if name in ratios:
                steps = int(ratios[name] * 10_000)
                await self.until(lambda envoy=envoy, steps=steps: _steps(envoy) == steps, f"{name} knows")

    def spans(self, path: str) -> list[tuple[str, Any]]:
        """(service, span) of the calls of a path."""
        found = []
        for body in (body for export in self.policy.control_plane.exports for body in export.resource_spans):
            spans = ResourceSpans.FromString(body)
            said = {pair.key: pair.value.string_value for pair in spans.resource.attributes}
            for span in (span for scope in spans.scope_spans for span in scope.spans):
                if any(pair.key == "http.url" and pair.value.string_value.endswith(path) for pair in span.attributes):
                    found.append((said["service.name"], span))
        return found

    def counted(self) -> dict[int, int]:
        """{reporter: allowed calls that it has counted}."""
        found: dict[int, int] = {}
        for stat in (stat for export in self.policy.control_plane.exports for stat in export.calls):
            if stat.status == "200":
                found[stat.reporter] = found.get(stat.reporter, 0) + stat.count
        return found

    def ran_under(self, method: str) -> set[int]:
        """The revisions that calls are counted under."""
        calls = [stat for export in self.policy.control_plane.exports for stat in export.calls]
        return {stat.revision for stat in calls if stat.method == method}

    async def all_are_counted(self) -> None:
        await self.until(lambda: self.counted() == {1: self.calls, 2: self.calls}, f"{self.calls} calls are counted")


def _steps(envoy: dict[str, Any]) -> int | None:
    """How many of ten thousand traces an Envoy records, by its own word."""
    with contextlib.closing(Open(envoy["adminSocket"])) as link:
        link.request("GET", "/runtime")
        known = json.loads(link.getresponse().read())["entries"].get("tracing.random_sampling")
    found = re.search(r"number_value: (\d+)", known["final_value"]) if known else None
    return int(found[1]) if found else None


@pytest.fixture
def mesh(agent: Any, control_plane: Any, until: Any) -> Iterator[World]:
    found = World(agent, Policy(control_plane), until)
    yield found
    found.close()


async def test_envoys_record_what_they_are_to_and_calls_are_counted_whole(mesh: World) -> None:
    await mesh.start()
    await the_service_where_a_trace_begins_decides_live(mesh)
    await who_has_decided_before_is_followed(mesh)
    await spans_and_calls_name_the_revision_that_they_ran_under(mesh)


async def the_service_where_a_trace_begins_decides_live(mesh: World) -> None:
    link = mesh.open()
    await mesh.sample(shop=0, billing=1)
    await mesh.ask(link, "/none", 40)
    for wish in WISHES:
        await mesh.ask(link, "/none", 1, wish)
    await mesh.sample(shop=1, billing=0)  # on the connection that is open
    await mesh.ask(link, "/all", 40)
    await mesh.until(lambda: len(mesh.spans("/all")) >= 80, "both sides tell of all", 60)
    assert sorted(name for name, _ in mesh.spans("/all")) == ["billing.platform"] * 40 + ["shop.acme"] * 40
    assert len({span.trace_id for _, span in mesh.spans("/all")}) == 40
    assert not mesh.spans("/none"), "an Envoy sends its spans in their order"
    await mesh.all_are_counted()


async def spans_and_calls_name_the_revision_that_they_ran_under(mesh: World) -> None:
    await mesh.sample(shop=1, billing=1)
    link = mesh.open()
    revisions = []
    for number in range(2):
        await settled(mesh.policy, mesh.until)
        revisions.append(mesh.policy.revision)
        await mesh.ask(link, f"/number{number}", 5)
        mesh.policy.push()  # the same once more, which is in force as soon as it comes
    for number, revision in enumerate(revisions):
        await mesh.until(lambda number=number: len(mesh.spans(f"/number{number}")) == 10, "both sides tell of all", 60)
        said = [pair for _, span in mesh.spans(f"/number{number}") for pair in span.attributes]
        assert [pair.value.int_value for pair in said if pair.key == "mesh.revision"] == [revision] * 10
    await mesh.all_are_counted()
    for number, revision in enumerate(revisions):
        assert mesh.ran_under(f"GET /number{number}") == {revision}


async def who_has_decided_before_is_followed(mesh: World) -> None:
    link = mesh.open()
    await mesh.sample(shop=1, billing=1)
    await mesh.ask(link, "/not", 20, {"traceparent": f"{PARENT}00"})
    await mesh.sample(shop=0, billing=0)
    await mesh.ask(link, "/forced", 20, {"traceparent": f"{PARENT}01"})
    for bad in ("00", f"{PARENT}zz", "00-" + "0" * 32 + "-b7ad6b7169203331-01", f"{PARENT}01" * 50):
        await mesh.ask(link, "/bad", 1, {"traceparent": bad})
    await mesh.ask(link, "/last", 3, {"traceparent": f"{PARENT}01"})
    await mesh.until(lambda: len(mesh.spans("/last")) >= 6, "both sides tell of the last", 60)
    forced = mesh.spans("/forced")
    assert sorted(name for name, _ in forced) == ["billing.platform"] * 20 + ["shop.acme"] * 20
    assert {span.trace_id.hex() for _, span in forced} == {TRACE}
    assert not mesh.spans("/not")
    assert not mesh.spans("/bad")
    await mesh.all_are_counted()


async def test_a_caller_that_has_all_traced_is_held_to_what_tenants_may_send(mesh: World) -> None:
    with mesh.agent.config.open("a") as config:
        config.write("telemetry_items_per_s = 1\n")
    await mesh.start()
    await mesh.sample(shop=0, billing=0)
    await mesh.ask(mesh.open(), "/forced", 300, {"traceparent": f"{PARENT}01"})
    drops = mesh.policy.control_plane.dropped
    for tenant in ("acme", "platform"):
        await mesh.until(lambda tenant=tenant: drops().get(("span", "rate_limited", tenant)), "the rest is dropped", 60)
    assert len(mesh.spans("/forced")) < 600
    await mesh.all_are_counted()
    assert ("log", "rate_limited") not in {key[:2] for key in drops()}
    assert "call" not in {key[0] for key in drops()}
