"""SPIRE's suite `evict-agent`: a banned agent exits and can't start again until it may; an evicted one comes back."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.sdk.mtls.refusal import BANNED, REFUSAL_KEY
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1.resource_service_pb2 import ApplyRequest

SHOW = "import os,sys,json; print(json.dumps(dict(os.environ))); sys.stdout.flush(); sys.stdin.read()"
MANIFEST = """
kind: Tenant
metadata: {tenant: acme, name: acme}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [node-a], selectors: {uid: %d}}
"""


async def exited(process: Any) -> int:
    return int(await asyncio.to_thread(process.wait, 60))


async def test_a_banned_agent_leaves_nothing_and_starts_no_more_until_it_may(
    mesh: Any, agent_of: Any, until: Any
) -> None:
    resources = [item.resource for item in parse(MANIFEST % os.geteuid(), "m.yaml")]
    await mesh.resources.Apply(ApplyRequest(resources=resources))
    certificate, key = mesh.machines.issue("node-a")
    agent = agent_of(mesh)
    text = agent.config.read_text().replace(f'join_token_file = "{agent.directory}/token"\n', "")
    proof = f'[attest]\nkind = "x509pop"\ncertificate_file = "{certificate}"\nkey_file = "{key}"\n'
    agent.config.write_text(text + proof)
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW)
    environment = json.loads(await asyncio.to_thread(program.stdout.readline))
    credentials = Path(environment["MESHWARDEN_CREDENTIALS"])
    assert (credentials / "tls.key").exists()

    # Evicted, it attests again by itself and goes on.
    before = (await agent.status())["workloads"][0]["serial"]
    await mesh.admin.EvictNode(admin.EvictNodeRequest(node="node-a"))

    async def is_back() -> bool:
        nodes = (await mesh.admin.ListNodes(admin.ListNodesRequest())).nodes
        return bool(nodes) and nodes[0].connected

    await until(is_back, "the evicted node is back")
    assert (await agent.status())["workloads"][0]["serial"] == before

    # Banned, it removes what it has, and exits.
    process = agent._process
    answer = await mesh.admin.BanNode(admin.BanNodeRequest(node="node-a", reason="stolen"))
    assert answer.denied == 1
    assert await exited(process) == 77
    said = agent.log.read_text()
    assert "node node-a is banned since" in said
    assert "stolen" in said.splitlines()[-1]
    assert "meshwarden node unban" in said.splitlines()[-1]
    for place in ("identity", "cache", "run/workloads"):
        assert list((agent.state_dir / place).iterdir()) == [], place
    # Its own serial number is denied as well, without an ID: by that the tokens of its workloads are known.
    (denied,) = [one for one in (await mesh.admin.ListDenied(admin.ListDeniedRequest())).denied if one.target.spiffe_id]
    assert denied.target.spiffe_id == "spiffe://mesh.test/tenant/acme/service/web"
    assert int(denied.target.serial, 16) == int(before, 16)

    # It can't start again, until it may.
    assert await exited(agent.start()) == 77
    await mesh.admin.UnbanNode(admin.UnbanNodeRequest(node="node-a"))
    await agent.ready()
    agent.stop()


async def test_only_a_verified_control_plane_makes_an_agent_clear_away_what_it_has(
    agent: Any, control_plane: Any, until: Any
) -> None:
    """Whoever stands where the control plane was, with a certificate of others, is not listened to."""
    await agent.ready()
    kept = sorted(path.name for path in (agent.state_dir / "identity").iterdir())
    await control_plane.stop()
    # Another authority of the same trust domain's name, on the same port, that says of everybody that it is banned.
    control_plane.authority = MemoryAuthority("mesh.test")
    asked = []

    async def ban(context: Any) -> None:
        asked.append(context)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "banned", ((REFUSAL_KEY, BANNED),))

    control_plane._caller = ban
    await control_plane.start()

    async def has_met() -> bool:
        return "CERTIFICATE_VERIFY_FAILED" in ((await agent.status()) or {}).get("lastError", "")

    await until(has_met, "the agent has met the impostor")
    assert not asked
    assert agent._process.poll() is None
    assert sorted(path.name for path in (agent.state_dir / "identity").iterdir()) == kept
