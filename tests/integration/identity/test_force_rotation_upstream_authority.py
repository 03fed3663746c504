"""SPIRE's suite `force-rotation-upstream-authority`: a root in Vault is changed by us and behind our back, under calls.

A real OpenBao, control plane and agent; orders and whoever calls it all the time are programs of the mesh. Whatever
becomes of the root, no call fails.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from openbao_server import OpenBao
from openbao_server import serve as serve_openbao

from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1.admin_service_pb2 import ChangeRootRequest, ListRootsRequest, RootState
from meshwarden.v1.resource_service_pb2 import ApplyRequest

PROGRAMS = Path(__file__).parents[2] / "e2e"
MANIFEST = """
kind: Tenant
metadata: {tenant: acme, name: acme}
---
kind: Service
metadata: {tenant: acme, name: orders}
spec: {protocol: GRPC}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: AccessPolicy
metadata: {tenant: acme, name: orders}
spec: {service: orders, allow: [{from: [{tenant: acme, service: web}]}]}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: orders}
spec: {service: orders, nodes: [node-a], port: %(port)d, selectors: {uid: %(uid)d}, insecureSameUser: true}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [node-a], selectors: {uid: %(uid)d}, insecureSameUser: true}
"""
# Calls all the time, on connections of its own now and then, and answers a line with how often, and what has failed.
CALLER = """
import json, sys, threading
from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
calls, failed = [0], []
def call():
    while True:
        with sdk.channel("xds:///orders") as channel:
            stub = orders_pb2_grpc.OrdersStub(channel)
            for _ in range(20):
                try:
                    stub.Get(orders_pb2.GetRequest(id="1"), timeout=20, wait_for_ready=calls[0] == 0)
                except Exception as error:
                    failed.append(str(error)[:500])
                calls[0] += 1
                pause.wait(0.02)
pause = threading.Event()
threading.Thread(target=call, daemon=True).start()
for _ in sys.stdin:
    print(json.dumps([calls[0], failed]), flush=True)
"""


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    with serve_openbao(tmp_path) as server:
        yield server


@pytest.fixture
async def world(bao: OpenBao, start: Any, agent_of: Any, until: Any, short_dir: Path) -> Any:
    """The mesh as it stands, with calls going on: its control plane, and what says how these are."""
    token = short_dir / "token-of-vault"
    token.touch(0o600)
    token.write_text(bao.token(policies=("upstream",)).get_secret_value())
    mesh = await start(authority={"kind": "vault", "address": bao.address, "token": f"file:{token}"})
    words = {"uid": os.geteuid(), "port": free_port(random.SystemRandom())}
    resources = [item.resource for item in parse(MANIFEST % words, "m.yaml")]
    await mesh.resources.Apply(ApplyRequest(resources=resources))
    agent = agent_of(mesh)
    (short_dir / "token").write_text(await mesh.token("node-a"))
    await agent.ready()
    served = short_dir / "served"
    agent.exec("orders", sys.executable, str(PROGRAMS / "counting_orders.py"), str(served))
    caller = agent.exec("web", sys.executable, "-c", CALLER)

    async def calls() -> int:
        """How many calls there were; none of them has failed."""
        caller.stdin.write("\n")
        caller.stdin.flush()
        count, failed = json.loads(await asyncio.to_thread(caller.stdout.readline))
        assert failed == []
        return int(count)

    async def go_on() -> bool:
        return await calls() > count + 30

    async def flowing() -> None:
        """Waits for calls on new connections."""
        nonlocal count
        count = await calls()
        await until(go_on, "calls go on")

    count = 0
    await flowing()
    return mesh, flowing


async def roots(mesh: Any) -> dict[str, Any]:
    answer = await mesh.admin.ListRoots(ListRootsRequest())
    return {RootState.State.Name(root.state): root for root in answer.roots}


async def change(mesh: Any, kind: Any, fingerprint: str = "", **more: Any) -> None:
    await mesh.admin.ChangeRoot(ChangeRootRequest(change=kind, fingerprint=fingerprint, **more))


async def test_a_root_of_vault_is_changed_by_us_and_behind_our_back(world: Any, bao: OpenBao, until: Any) -> None:
    mesh, flowing = world
    kinds = ChangeRootRequest
    old = (await roots(mesh))["ACTIVE"].fingerprint

    async def held_by_all(fingerprint: str) -> bool:
        found = await roots(mesh)
        return found["ACTIVE"].fingerprint == fingerprint and bool(found["ACTIVE"].used_by)

    # By us: prepared, acknowledged by the node, activated; everybody leaves the old one when it is tainted.
    await change(mesh, kinds.PREPARE)
    new = (await roots(mesh))["PREPARED"].fingerprint

    async def activated() -> bool:
        try:
            await change(mesh, kinds.ACTIVATE, new)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return False
            raise
        return True

    await until(activated, "the node has acknowledged the root")
    await change(mesh, kinds.TAINT, old)
    await until(lambda: held_by_all(new), "the node uses the new root")

    async def is_left() -> bool:
        return not (await roots(mesh))["TAINTED"].used_by

    await until(is_left, "the node uses the old root no more")
    await flowing()
    said = bao.admin.list("pki/issuers")["data"]["key_info"].values()
    assert [one["is_default"] for one in said if one["issuer_name"].startswith("meshwarden-active-")] == [True]
    assert [one["is_default"] for one in said if one["issuer_name"].startswith("meshwarden-tainted-")] == [False]
    assert len(said) == 2
    mesh.connect()
    await change(mesh, kinds.REVOKE, old, force=True)
    assert set(await roots(mesh)) == {"ACTIVE"}
    await flowing()

    # Behind our back: whoever keeps Vault makes another root, and makes it the default.
    made = bao.admin.write_data("pki/root/rotate/internal", data={"common_name": "another", "key_type": "ec"})["data"]

    async def is_prepared() -> bool:
        return "PREPARED" in await roots(mesh)

    await until(is_prepared, "it is picked up")
    third = (await roots(mesh))["PREPARED"].fingerprint
    bao.admin.write_data("pki/config/issuers", data={"default": made["issuer_id"]})

    async def signs() -> bool:
        return (await roots(mesh))["ACTIVE"].fingerprint == third

    await until(signs, "it is acknowledged and activated")
    assert (await roots(mesh))["OLD"].fingerprint == new
    await change(mesh, kinds.TAINT, new)
    await until(lambda: held_by_all(third), "the node uses it")
    await until(is_left, "the node uses the one before no more")
    await flowing()
