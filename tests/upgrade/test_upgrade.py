"""A running mesh is moved from the last release to this tree and back, part by part, under load; no call fails.

In the order of docs/upgrade.md. `make upgrade-test` runs it and prints what was called.
"""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from tests.upgrade.load import FINE, Load
from tests.upgrade.parts import NODES, SERVING, Mesh, open_mesh, until
from tests.upgrade.release import NEW, Release, last_release

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.local import context, sample
from meshwarden.controlplane.local.client import connect
from meshwarden.controlplane.local.kernel import sweep
from meshwarden.controlplane.local.mesh import SERVER
from meshwarden.controlplane.resources.model import ref_of, title, unwrap
from meshwarden.v1.resource_service_pb2 import DeleteRequest, ListRequest, ResourceRef

pytestmark = [pytest.mark.by_hand, pytest.mark.needs("node", "npm"), pytest.mark.timeout(3000)]
CALLERS = (*NODES, "node")
UNDER_WAY_S = 2.0
# Each stage makes a change, which calls with this header show.
STAGE = """\
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  rules:
  - {match: {headers: [{name: x-stage, exact: "STAGE"}]}, split: [{version: nowhere, weight: 1}]}
  - split: [{version: v1, weight: 1}]
---
kind: RoutePolicy
metadata: {tenant: platform, name: billing}
spec:
  service: billing
  rules:
  - {match: {headers: [{name: x-stage, exact: "STAGE"}]}, split: [{version: nowhere, weight: 1}]}
  - split: [{version: v1, weight: 1}]
"""
# A limit that nobody comes near.
LIMIT = """\
kind: RatePolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, shadow: SHADOW, limits: [{tenant: "*", requests: 10000}]}
"""
# And versions that nobody serves.
BESIDE = """\
kind: WorkloadEntry
metadata: {tenant: platform, name: orders-nowhere}
spec: {service: orders, version: nowhere, nodes: [node-a], selectors: {uid: 65532}}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: billing-nowhere}
spec: {service: billing, version: nowhere, nodes: [node-a], selectors: {uid: 65533}}
"""
DRAIN = """\
kind: Drain
metadata: {tenant: platform, name: upgrade}
spec: {node: NODE, service: SERVICE}
"""
# What the last release doesn't know.
NEWER = """\
kind: AccessPolicy
metadata: {tenant: platform, name: newer}
spec: {service: orders, deny: [{from: [{tenant: acme, service: intruder}]}]}
"""


@pytest.fixture(scope="session")
def old() -> Release:
    return last_release()


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    directory = Path(tempfile.mkdtemp(prefix="mw-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        try:
            async with open_mesh(directory / "u") as made:
                yield made
        finally:
            sweep(str((directory / "u").resolve()))
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def load(mesh: Mesh) -> AsyncIterator[Load]:
    made = Load(mesh)
    yield made
    await made.kill()


def examples(tree: Path) -> str:
    """A resource of each kind, as a version's documentation shows it, in a tenant that nobody calls."""
    found = re.findall(r"```yaml\n(.*?)```", (tree / "docs/resources.md").read_text(), re.DOTALL)
    assert len(found) >= 9
    text = "---\n".join(found).replace("tenant: platform", "tenant: records").replace("name: platform", "name: records")
    # Else "orders" would mean two services to who calls.
    return text.replace('exportTo: ["*"]', "exportTo: [platform]")


def stored(mesh: Mesh) -> dict[str, Message]:
    """All resources of operators, by kind, tenant and name."""
    found: dict[str, Message] = {}
    with connect(mesh.context(), utc_now()) as client:
        page = client.resource.List(ListRequest(page_size=500), timeout=20)
    assert not page.next_page_token
    for resource in page.resources:
        message = unwrap(resource)
        message.metadata.ClearField("record")
        if not resource.HasField("endpoint") or not message.spec.node:
            found[title(ref_of(resource))] = message
    return found


def command(mesh: Mesh, version: Release, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a version's operator types."""
    run = [version.python, "-m", "meshwarden.controlplane", *arguments]
    return subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)


def delete(mesh: Mesh, kind: str, name: str) -> None:
    """Deletes a resource of the tenant "platform"."""
    with connect(mesh.context(), utc_now()) as client:
        client.resource.Delete(DeleteRequest(refs=[ResourceRef(kind=kind, tenant="platform", name=name)]), timeout=20)


async def look(mesh: Mesh, load: Load, stage: str, versions: tuple[Release, ...]) -> None:
    """Holds a stage: a change reaches all data planes, and operators of both versions see a whole mesh."""
    await mesh.apply(STAGE.replace("STAGE", stage))
    await until(mesh.is_current, f"{stage}: all nodes have the change")
    for node in NODES:
        for kind, code in (("grpc", "UNAVAILABLE"), ("http", "503")):
            await until(
                lambda node=node, kind=kind, code=code: shows(load, node, kind, stage, code),
                f"{stage}: {kind} on {node}",
            )
    for version in versions:
        for said in (("status",), ("get", "Service"), ("audit", "verify")):
            done = await asyncio.to_thread(command, mesh, version, *said)
            assert done.returncode == 0, (stage, version.name, said, done.stdout, done.stderr)
    noted = sum(codes.total() for codes in load.counts.values())
    print(f"{stage}: {noted} calls are noted, {load.failed or 'none failed'}", flush=True)
    assert not load.failed


async def shows(load: Load, node: str, kind: str, stage: str, code: str) -> bool:
    named = {"metadata": {"x-stage": stage}} if kind == "grpc" else {"headers": {"x-stage": stage}}
    return await load.once(node, kind, **named) == code


async def move_agent(mesh: Mesh, load: Load, node: str, version: Release) -> None:
    async with load.held_up(node):
        await mesh.move(mesh.agents[node].name, version)


async def move_programs(mesh: Mesh, load: Load, version: Release) -> None:
    for one in SERVING:
        # New calls go elsewhere before it ends.
        drain = DRAIN.replace("NODE", one.node).replace("SERVICE", one.service.partition("/")[2])
        await mesh.apply(drain)
        await until(mesh.is_current, f"{one.name} is out of rotation")
        # A client acknowledges what it has read; calls that had chosen before get their time.
        await asyncio.sleep(UNDER_WAY_S)
        await mesh.move(one.name, version)
        delete(mesh, "Drain", "upgrade")
        await until(mesh.is_current, f"{one.name} is in rotation again")
    for caller in CALLERS:
        await load.stop(caller)
        await load.start(caller, version)


async def newer_things_hold_the_last_release_back(mesh: Mesh, old: Release) -> None:
    """It refuses the store, and says so, rather than leave out what a policy says; and no longer than there is any."""
    await mesh.apply(NEWER)
    said = await asyncio.to_thread(command, mesh, NEW, "way-back")
    assert said.returncode == 6
    assert "AccessPolicy platform/newer" in said.stdout
    assert "spec.deny" in said.stdout
    await mesh.kept[SERVER].stop()
    config = str(mesh.plan.server_config)
    refused = await asyncio.to_thread(command, mesh, old, "server", "--config", config)
    assert refused.returncode
    said_why = refused.stdout + refused.stderr
    assert "format 2, and this Meshwarden knows up to 1" in said_why, said_why
    print(f"newer things hold it back: {said_why.strip().splitlines()[-1]}", flush=True)
    mesh.plan.server_json.unlink(missing_ok=True)
    await mesh.kept[SERVER].start()
    await until(mesh.is_whole, "the control plane of this tree goes on")
    delete(mesh, "AccessPolicy", "newer")

    async def is_free() -> bool:
        return (await asyncio.to_thread(command, mesh, NEW, "way-back")).returncode == 0

    await until(is_free, "nothing is in the way")


async def test_a_running_mesh_is_moved_to_this_tree_and_back(mesh: Mesh, load: Load, old: Release) -> None:
    await mesh.start(old)
    context.put("upgraded", mesh.context())
    shop = [item.resource for item in sample.manifests(("shop",), os.geteuid(), *NODES)]
    await mesh.operator.apply([item for item in shop if not item.HasField("route_policy")])
    await mesh.apply(BESIDE)
    await mesh.apply(LIMIT.replace("SHADOW", "false"))
    await mesh.apply(examples(old.tree))
    await mesh.serve(old)
    for caller in CALLERS:
        await load.start(caller, old)
    both = (old, NEW)
    await look(mesh, load, "all-old", both)
    before = stored(mesh)

    await mesh.move(SERVER, NEW)
    assert stored(mesh).keys() == before.keys()
    await look(mesh, load, "new-control-plane", both)
    for node in NODES:
        await move_agent(mesh, load, node, NEW)
        await look(mesh, load, f"new-{node}", both)
    await move_programs(mesh, load, NEW)
    await look(mesh, load, "all-new", both)
    await newer_things_hold_the_last_release_back(mesh, old)

    # A program of 0.0.9 begins with two calls and refuses the next, until it has its share half a second later.
    await mesh.apply(LIMIT.replace("SHADOW", "true"))
    await until(mesh.is_current, "the limit is in shadow")
    await move_programs(mesh, load, old)
    await mesh.apply(LIMIT.replace("SHADOW", "false"))
    await look(mesh, load, "old-programs", both)
    for node in reversed(NODES):
        await move_agent(mesh, load, node, old)
        await look(mesh, load, f"old-{node}", both)
    await mesh.move(SERVER, old)
    await look(mesh, load, "old-again", both)
    for caller in CALLERS:
        await load.stop(caller)
    after = stored(mesh)
    # The stages have changed these.
    changed = {"RoutePolicy platform/orders", "RoutePolicy platform/billing"}
    assert {name: after[name] for name in after.keys() - changed} == {
        name: before[name] for name in before.keys() - changed
    }
    assert not load.failed
    for (caller, kind), codes in sorted(load.counts.items()):
        print(f"{caller} {kind}: {dict(codes)}")
        assert set(codes) == {FINE[kind]}
