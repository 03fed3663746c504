"""Two regions, each with a mesh of its own; one is cut off from the other for a while, and then both know all of both.

Their one root is in an OpenBao, and at the end that is away.

`make test` cuts for a minute, `make soak` for ten (MESHWARDEN_CUT_S).
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fault import stopped
from prometheus_client.parser import text_string_to_metric_families
from tests.shell import Shell

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.local import record
from meshwarden.controlplane.local.check.call import ORDERS, grpc_calls, only
from meshwarden.controlplane.local.check.probe import Probe, probe
from meshwarden.controlplane.local.client import connect
from meshwarden.controlplane.local.context import Context
from meshwarden.controlplane.local.kernel import MARK
from meshwarden.v1.admin_service_pb2 import GetGraphRequest, GetStatusRequest, ListCallsRequest, RegionState
from meshwarden.v1.report_pb2 import CallStat

PAGE = "docs/regions.md"
CUT_S = float(os.environ.get("MESHWARDEN_CUT_S", "60"))
# Ten calls a second are within what globex may do.
RATE = 10
DEADLINE_S = 120.0
# What one look may take.
LOOK_S = 60.0
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(CUT_S + 900)]
# tests/e2e/conftest.py: Up
Start = Callable[..., Any]
WEB = "spiffe://mesh.test/tenant/globex/service/web"
# A method that no sample calls: every call of it is a probe's.
METHOD = "/meshwarden.examples.v1.Orders/List"
CALL = {**ORDERS, "method": "List", "timeout_s": 30}
TENANT = "kind: Tenant\nmetadata:\n  name: {name}\n"
PARTED = """\
kind: RatePolicy
metadata: {tenant: platform, name: parted}
spec: {service: orders, total: {requests: 8}, regions: [{region: eu, weight: 3}, {region: us, weight: 1}]}
"""


class Relay:
    """The way to a region's control plane. Cut, it takes what comes and passes nothing on, as a broken network does."""

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def heal(self) -> None:
        self._whole.set()

    def close(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(one,), daemon=True).start()

    def _join(self, one: socket.socket) -> None:
        self._sockets.append(one)
        try:
            host, _, port = self._target().rpartition(":")
            other = socket.create_connection((host, int(port)))
        except (OSError, ValueError, KeyError):  # it does not listen yet
            one.close()
            return
        self._sockets.append(other)
        for way in ((one, other), (other, one)):
            threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._whole.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Region:
    """One region as its operator sees it."""

    def __init__(self, up: Any, name: str) -> None:
        self.up, self.name = up, name

    @property
    def said(self) -> dict[str, Any]:
        """What up.json says of it."""
        found: dict[str, Any] = next(item for item in self.up.up_json["regions"] if item["region"] == self.name)
        return found

    def context(self) -> Context:
        said = self.said
        control_plane, admin = said["control_plane"], said["admin"]
        return Context(control_plane["address"], control_plane["ca_file"], admin["cert_file"], admin["key_file"])

    def status(self) -> Any:
        with connect(self.context(), utc_now()) as client:
            return client.admin.GetStatus(GetStatusRequest(), timeout=LOOK_S)

    def runs_the_newest(self) -> bool:
        status = self.status()
        return all(node.acked_revision == status.revision for node in status.nodes)

    def other(self) -> RegionState:
        """What it says of the other region."""
        found: RegionState = self.status().regions[1]
        return found

    def edges(self) -> dict[tuple[str, str, str], dict[str, int]]:
        """What calls came to, {(region, source, destination): {outcome: count}}."""
        with connect(self.context(), utc_now()) as client:
            edges = client.admin.GetGraph(GetGraphRequest(), timeout=LOOK_S).edges
        return {(edge.region, edge.source, edge.destination): dict(edge.outcomes) for edge in edges}

    def rows(self, region: str, start: datetime, end: datetime) -> dict[bytes, int]:
        """What its ledger holds of a region, {row without its count: count}."""
        request = ListCallsRequest(limit=50_000)
        request.start.FromDatetime(start)
        request.end.FromDatetime(end)
        with connect(self.context(), utc_now()) as client:
            calls = client.admin.ListCalls(request, timeout=LOOK_S).calls
        found = Counter[bytes]()
        for row in calls:
            if row.region == region:
                count = row.count
                row.count = 0
                row.duration_sum_s = round(row.duration_sum_s, 6)
                found[row.SerializeToString(deterministic=True)] += count
        return dict(found)

    def calls(self, region: str, start: datetime) -> int:
        """How many calls of the probe its ledger counts of a region, as the caller has told."""
        rows = self.rows(region, start, utc_now() + timedelta(minutes=5))
        stats = [(CallStat.FromString(row), count) for row, count in rows.items()]
        return sum(
            count
            for stat, count in stats
            if (stat.source, stat.method, stat.reporter) == (WEB, METHOD, CallStat.SOURCE)
        )

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(self.said["metrics_url"], timeout=LOOK_S) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def doctor(self) -> dict[str, dict[str, str]]:
        """What `meshwarden doctor` finds in this region, {cause: finding}."""
        said = self.up.run("--context", f"{self.up.state_dir.name}-{self.name}", "doctor", "-o", "json")
        assert said.returncode in (0, 1), said.stderr
        return {finding["cause"]: finding for finding in json.loads(said.stdout)}

    def quota(self) -> dict[str, Any]:
        """How the limit stands that both regions have a part of; empty while it isn't used."""
        shown = self.up.run(
            *("--context", f"{self.up.state_dir.name}-{self.name}", "quota", "top", "-o", "json"),
            *("--policy", "platform/parted"),
        )
        found: list[dict[str, Any]] = json.loads(shown.stdout or "{}").get("quotas", [])
        return found[0] if found else {}

    def apply(self, directory: Path, name: str, text: str) -> None:
        """Applies a manifest."""
        manifest = directory / f"{name}.yaml"
        manifest.write_text(text)
        done = self.up.run("--context", f"{self.up.state_dir.name}-{self.name}", "apply", "-f", str(manifest))
        assert done.returncode == 0, done.stderr

    def paused(self, workload: str) -> AbstractContextManager[None]:
        """Stops a sample, so that what it calls comes to an end."""
        return stopped(next(int(item["pid"]) for item in self.said["workloads"] if item["name"] == workload))

    def probe(self) -> Any:
        """A program of globex in this region."""
        agent = next(Path(item["agent_socket"]) for item in self.said["agents"] if item["node"] == "node-b")
        command = (sys.executable, "-m", "meshwarden.agents")
        environment = {MARK: str(self.up.state_dir.resolve())}
        return probe(f"probe-{self.name}", command, agent, "globex/web", self.up.state_dir, environment)


async def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Waits for a condition that is looked at on a thread; what it returned."""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                if found := await asyncio.to_thread(condition):
                    return found
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what}") from None


def eu_is_alone(shell: Shell, contexts: dict[str, str]) -> None:
    """What it says of itself and of the other, by the commands of the page."""
    shell.reads(PAGE, "meshwarden --context up-eu status", contexts, rows=True)
    shell.reads(PAGE, "meshwarden --context up-eu graph", contexts, rows=True)


def both_are_told(up: Any, shell: Shell, contexts: dict[str, str]) -> None:
    """What is applied to both, and what one has denied, by the commands of the page."""
    (shell.directory / "both.yaml").write_text(TENANT.format(name="both"))
    shell.types(
        PAGE,
        "meshwarden --context eu apply -f … && meshwarden --context us apply -f …",
        {"--context eu": "--context r-eu", "--context us": "--context r-us", "…": "both.yaml"},
    )
    denied = up.run("--context", "r-eu", "identity", "deny", WEB, "--reason", "key on a laptop")
    assert denied.returncode == 0, denied.stderr
    shell.reads(PAGE, "meshwarden --context up-us identity denied", contexts)
    allow = "meshwarden --context up-us identity allow spiffe://mesh.test/tenant/globex/service/web"
    shell.types(PAGE, allow, contexts, code=1)


async def the_root_is_away(up: Any, region: Region) -> None:
    """`doctor` says so: of an OpenBao that hangs, of one that is sealed, and of one that takes our token no more."""

    def away() -> str:
        return region.doctor().get("authority away", {}).get("evidence", "")

    vault = next(item for item in record.load(up.state_dir) if item.name == "vault")
    with stopped(vault.pid):
        await until(lambda: "sys/seal-status" in away(), "doctor sees that OpenBao hangs")
    await until(lambda: not away(), "doctor sees that it is back")
    (address,) = re.findall(r'api_addr = "(.*)"', (up.state_dir / "vault" / "bao.hcl").read_text())
    root = json.loads((up.state_dir / "vault" / "keys.json").read_text())["root"]
    with stopped(up.process.pid):  # it would unseal it at once
        await asyncio.to_thread(ask_vault, f"{address}/v1/sys/seal", root)
        await until(lambda: "Vault is sealed" in away(), "doctor sees that OpenBao is sealed")
    await until(lambda: not away(), "doctor sees that it is open again")
    token = (up.state_dir / "vault" / "token").read_text()
    await asyncio.to_thread(ask_vault, f"{address}/v1/auth/token/revoke-self", token)
    await until(lambda: "is unknown to Vault, or has ended" in away(), "doctor sees that the token is taken no more")


def ask_vault(url: str, token: str) -> None:
    """Has OpenBao do something that takes no words."""
    request = urllib.request.Request(url, b"", {"X-Vault-Token": token}, method="POST")  # noqa: S310 - loopback
    urllib.request.urlopen(request, timeout=LOOK_S).close()  # noqa: S310 - loopback


@pytest.fixture
def relays(directory: Path) -> Iterator[dict[str, Relay]]:
    """The way to each region."""

    def to(region: str) -> Callable[[], str]:
        file = directory / "r" / f"region-{region}" / "server" / "server.json"
        return lambda: str(json.loads(file.read_text())["address"])

    made = {region: Relay(to(region)) for region in ("eu", "us")}
    yield made
    for relay in made.values():
        relay.close()


async def test_a_region_that_was_cut_off_is_known_to_the_call(
    start: Start, directory: Path, relays: dict[str, Relay]
) -> None:
    reach = [text for region, relay in relays.items() for text in ("--reach", f"{region}={relay.address}")]
    up = start("r", "--regions", "eu,us", "--vault", *reach)
    await until(lambda: (up.state_dir / "up.json").exists() or up.process.poll() is not None, "it is up", 300)
    assert up.process.poll() is None, up.said()
    eu, us = Region(up, "eu"), Region(up, "us")
    began = utc_now() - timedelta(minutes=10)
    for region, other in ((eu, us), (us, eu)):
        await until(lambda region=region: region.other().answers, f"{region.name} hears of {other.name}")
        assert [item["node"] for item in region.said["agents"]] == ["node-a", "node-b"]
        assert (region.status().region, region.other().region) == (region.name, other.name)

    async with AsyncExitStack() as stack:
        made: dict[str, int] = {}
        probes: dict[str, Probe] = {}
        for region in (eu, us):
            stack.enter_context(region.paused("globex-web"))
            probes[region.name] = await stack.enter_async_context(region.probe())
            made[region.name] = only(await grpc_calls(probes[region.name], 50, rate=50, **CALL), "OK", region.name)
        for region in (eu, us):
            for of in (eu, us):
                await until(
                    lambda region=region, of=of: region.calls(of.name, began) == made[of.name],
                    f"{region.name} counts {made[of.name]} calls of {of.name}",
                )

        # -- cut
        for relay in relays.values():
            relay.cut()
        for each in probes.values():
            await each.ask("steady_start", id="cut", call={"op": "grpc", "rate": RATE, **CALL})
        for region in (eu, us):
            await until(lambda region=region: not region.other().answers, f"{region.name} hears nothing")
            name = f"cut-{region.name}"
            await asyncio.to_thread(region.apply, directory, name, TENANT.format(name=name))
        for region, other in ((eu, us), (us, eu)):
            await until(
                lambda region=region, other=other: (
                    region.metric("meshwarden_region_age_seconds", region=other.name) >= CUT_S
                ),
                f"what {region.name} knows of {other.name} is {CUT_S:g} s old",
                CUT_S + DEADLINE_S,
            )
            status = region.status()
            assert all(node.connected for node in status.nodes)
            await until(region.runs_the_newest, f"what was applied in {region.name} runs there")
            assert status.regions[1].age.seconds >= CUT_S - 1
            assert any(f"region {other.name} does not answer" in warning for warning in status.warnings)
            assert region.doctor()["region silent"]["subject"] == f"region {other.name}"
            assert region.calls(other.name, began) == made[other.name]
            assert region.calls(region.name, began) > made[region.name]
        shell = Shell(up.environment, directory)
        contexts = {"up-eu": "r-eu", "up-us": "r-us"}
        await asyncio.to_thread(eu_is_alone, shell, contexts)
        healed = utc_now()

        # -- healed
        for relay in relays.values():
            relay.heal()
        for region in (eu, us):
            made[region.name] += only(await probes[region.name].ask("steady_stop", id="cut"), "OK", region.name)
        for region in (eu, us):
            for of in (eu, us):
                await until(
                    lambda region=region, of=of: region.calls(of.name, began) == made[of.name],
                    f"{region.name} counts {made[of.name]} calls of {of.name}",
                )
        # All minutes that had begun, of all samples, both sides, row by row.
        end = healed.replace(second=0, microsecond=0)
        for of, other in ((eu, us), (us, eu)):
            await until(
                lambda of=of, other=other: of.rows(of.name, began, end) == other.rows(of.name, began, end),
                f"both have the same rows of {of.name}",
            )
            assert of.rows(of.name, began, end)
        edge = ("us", "globex/web", "platform/orders")
        # The sample's calls are there as well.
        await until(
            lambda: eu.edges()[edge] == (own := us.edges()[edge]) and sum(own.values()) >= made["us"],
            "the graph of us in eu is that of us",
        )
        labels = {"source_tenant": "globex", "source_service": "web", "destination_service": "orders"}
        labels |= {"reporter": "source", "tenant": "globex", "method": METHOD}
        own = us.metric("meshwarden_requests_total", **labels)
        assert own == made["us"]
        assert eu.metric("meshwarden_remote_requests_total", region="us", **labels) == own
        await until(
            lambda: eu.other().answers and eu.metric("meshwarden_region_age_seconds", region="us") < 30, "young"
        )
        # -- a limit of which each region gives out its part
        for region in (eu, us):
            await asyncio.to_thread(region.apply, directory, "parted", PARTED)
            await probes[region.name].ask("steady_start", id="parted", call={"op": "grpc", "rate": RATE, **CALL})
        for region, limit in ((eu, 6), (us, 2)):
            await until(
                lambda region=region, limit=limit: (
                    (state := region.quota()).get("limit") == limit and 0 < state.get("share", 0) <= limit * 1.0001
                ),
                f"{region.name} divides its part",
            )
    table = up.run("--context", "r-us", "graph").stdout.splitlines()
    assert {line.partition("\t")[0] for line in table[1:]} == {"eu", "us"}
    await until(lambda: up.run("--context", "r-eu", "status").stdout.count("answers") == 1, "status says so")
    await asyncio.to_thread(both_are_told, up, shell, contexts)
    await the_root_is_away(up, eu)
    assert up.run("down").returncode == 0
    assert up.wait_until_ended() == 0, up.said()
    assert up.left() == []
