"""An agent runs an ingress by itself, with its own identity and those that are lent to it; no program is one."""

import asyncio
import os
import random
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import report_pb2 as report_pb

sys.path.insert(0, str(Path(__file__).parent))
from policy_world import HTTP, Policy, healthy, made, settled
from test_ingress import JWT, bearer, token


def answer(port: int, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/x", headers={"host": "shop.test", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - loopback
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def envoys(status: Any) -> dict[str, Any]:
    return {envoy["name"]: envoy for envoy in status.get("envoys", ())}


async def test_an_agent_runs_an_ingress_and_lends_it_identities(agent: Any, control_plane: Any, until: Any) -> None:
    policy, program, port = Policy(control_plane), free_port(random.SystemRandom()), free_port(random.SystemRandom())
    ingress = {"dataPlane": "INGRESS", "selectors": {"uid": os.geteuid(), "gid": os.getegid()}}
    policy.declare(
        {"tenant": "platform", "name": "billing", "port": program, "envoy": True, "protocol": "HTTP"},
        {"tenant": "platform", "name": "edge", "protocol": "HTTP", "more": ingress},
        {"tenant": "acme", "name": "edge", "protocol": "HTTP", "more": {**ingress, "ingress": "platform/edge"}},
    )
    policy.mesh.apply(
        [
            made(
                "Ingress",
                "platform",
                "edge",
                {
                    "service": "edge",
                    "listen": f"127.0.0.1:{port}",
                    "jwt": [JWT],
                    "routes": [{"hosts": ["shop.test"], "pathPrefix": "/", "service": "billing"}],
                },
            )
        ]
    )
    await agent.ready()
    agent.exec("billing", sys.executable, "-c", HTTP)
    await until(healthy(policy, "billing"), "billing takes calls")
    policy.allow("platform/billing", "acme/edge")

    async def ask(wanted: int, **headers: str) -> str:
        async def same() -> str:
            policy.follow()
            code, text = await asyncio.to_thread(answer, port, **headers)
            return f"{text} " if code == wanted else ""

        return str(await until(same, f"the ingress answers {wanted}"))

    assert "URI=spiffe://mesh.test/tenant/acme/service/edge" in await ask(200, **bearer(token()))
    await ask(401)
    await ask(403, **bearer(token(org="staff")))
    await settled(policy, until)
    # Nobody is taken for it, whoever asks: neither by its name nor by its user.
    refused = agent.exec("edge", sys.executable, "-c", "", flags=("--instance", "me"))
    assert await asyncio.to_thread(refused.wait, 60) != 0
    refused = agent.exec("acme/edge", sys.executable, "-c", "")
    assert await asyncio.to_thread(refused.wait, 60) != 0
    assert "acme/edge is an ingress's: its agent runs that, no program does" in refused.stderr.read()
    status = await agent.status()
    assert set(envoys(status)) == {"platform/billing#1", "platform/edge#1"}
    assert {one["spiffeId"].rpartition("/tenant/")[2] for one in status["workloads"]} == {
        "platform/service/billing",
        "platform/service/edge",
        "acme/service/edge",
    }
    # No key of it lies in a file.
    assert not [path for path in agent.state_dir.rglob("tls.key") if "workloads" in str(path) and "edge" in str(path)]

    def told() -> bool:
        return any(
            call.source == "spiffe://mesh.test/tenant/acme/service/edge"
            and call.destination == "platform/billing"
            and call.reporter == report_pb.CallStat.SOURCE
            for export in control_plane.exports
            for call in export.calls
        )

    await until(told, "its calls are told as those of acme")
    # Killed it comes back by itself.
    pid = envoys(status)["platform/edge#1"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await until(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it is gone"
    )
    await ask(200, **bearer(token()))
    # What is lent can be taken back at any time.
    entries = node_pb.EntrySet()
    entries.CopyFrom(control_plane.state["entries"].entries)
    kept = [one for one in entries.entries if one.metadata.tenant != "acme"]
    del entries.entries[:]
    entries.entries.extend(kept)
    policy.mesh.apply([made("WorkloadEntry", "acme", "edge", {"service": "edge", "nodes": ["node-b"]})])
    control_plane.push(entries=entries)
    policy.push()
    assert "lends ingress platform/edge no identity" in await ask(403, **bearer(token()))
    # Without its entry there is no ingress.
    del entries.entries[:]
    control_plane.push(entries=entries)

    def closed() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    await until(closed, "nobody listens")
