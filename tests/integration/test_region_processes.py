"""Two control planes as `up --regions` starts them, without nodes: they believe each other, and outlast each other."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.local.client import connect
from meshwarden.controlplane.local.mesh import LocalMesh, rank
from meshwarden.controlplane.local.plan import Options
from meshwarden.controlplane.local.process import children
from meshwarden.controlplane.local.record import Record
from meshwarden.v1.admin_service_pb2 import (
    AllowRequest,
    ChangeRootRequest,
    DenyRequest,
    DenyTarget,
    ListDeniedRequest,
    ListRootsRequest,
    ListRootsResponse,
    RegionState,
    RootState,
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """One whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="mw-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def running(state_dir: Path, *regions: str, vault: bool = False) -> AsyncIterator[list[LocalMesh]]:
    """The control planes of regions."""
    rng = random.Random()  # ports that no other test has chosen
    options = Options(state_dir, samples=(), regions=regions, vault=vault)
    async with children(Record(state_dir), print, rng, rank) as kept:
        meshes = [LocalMesh(plan, options, kept, rng) for plan in options.plans()]
        try:
            for mesh in meshes:
                mesh.prepare()
            if vault:
                await meshes[0].start_vault()
            for mesh in meshes:
                mesh.vault = meshes[0].vault
                mesh.take_root()
                peers = {other.plan.region: other.address for other in meshes if other is not mesh}
                await mesh.start_control_plane(None, peers)
            yield meshes
        finally:
            for mesh in meshes:
                await mesh.close()


async def until(condition: Callable[[], Awaitable[object]], deadline_s: float = 60.0) -> None:
    async with asyncio.timeout(deadline_s):
        while True:
            try:
                if await condition():
                    return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.1)


async def other(mesh: LocalMesh) -> RegionState:
    return (await mesh.operator.status()).regions[1]


async def test_each_answers_the_other_and_goes_on_without(directory: Path) -> None:
    async with running(directory, "eu", "us") as (eu, us):

        async def both() -> bool:
            return (await other(eu)).answers and (await other(us)).answers

        await until(both)
        ours, theirs = (mesh.plan.server / "ca" / "roots.json" for mesh in (eu, us))
        assert ours.read_bytes() == theirs.read_bytes()
        own, there = (await eu.operator.status()).regions
        assert (own.region, own.own) == ("eu", True)
        assert (there.region, there.address, there.own, there.error) == ("us", us.address, False, "")
        web = DenyTarget(spiffe_id="spiffe://mesh.test/tenant/acme/service/web")
        with connect(eu.context(), utc_now()) as client:
            client.admin.Deny(DenyRequest(targets=[web], reason="leaked"), timeout=10)

        async def denied() -> list[str]:
            with connect(us.context(), utc_now()) as client:
                return [item.by for item in client.admin.ListDenied(ListDeniedRequest(), timeout=10).denied]

        await until(denied)
        assert await denied() == ["region eu"]
        with connect(us.context(), utc_now()) as client, pytest.raises(grpc.RpcError, match="allow it there"):
            client.admin.Allow(AllowRequest(targets=[web]), timeout=10)
        with connect(eu.context(), utc_now()) as client:
            client.admin.Allow(AllowRequest(targets=[web]), timeout=10)

        async def allowed() -> bool:
            return not await denied()

        await until(allowed)
        await us.stop_server()  # SIGKILL

        async def alone() -> bool:
            return not (await other(eu)).answers

        await until(alone)
        status = await eu.operator.status()
        assert status.regions[1].HasField("age")
        assert "UNAVAILABLE" in status.regions[1].error
        assert "region us does not answer" in status.warnings[-1]
        await us.start_server()
        await until(both)


async def test_a_region_that_comes_later_is_of_the_same_root(directory: Path) -> None:
    async with running(directory, "eu", "us"):
        pass
    async with running(directory, "asia", "us") as (asia, us):

        async def both() -> bool:
            return (await other(asia)).answers and (await other(us)).answers

        await until(both)


async def test_two_regions_under_one_vault_believe_each_other(directory: Path) -> None:
    async with running(directory, "eu", "us", vault=True) as (eu, us):

        async def both() -> bool:
            return (await other(eu)).answers and (await other(us)).answers

        await until(both)
        for mesh in (eu, us):
            assert (await mesh.operator.status()).authority.startswith("vault: ")
            assert not (mesh.plan.server / "ca").exists()


Listed = list[tuple[str, str, str]]


def listed(answer: ListRootsResponse) -> Listed:
    """[(fingerprint, state, whose)] as `meshwarden ca list` shows them."""
    return [(root.fingerprint, RootState.State.Name(root.state), root.region) for root in answer.roots]


def roots_of(mesh: LocalMesh) -> Listed:
    with connect(mesh.context(), utc_now()) as client:
        return listed(client.admin.ListRoots(ListRootsRequest(), timeout=10))


def change(mesh: LocalMesh, **fields: Any) -> Listed:
    with connect(mesh.context(), utc_now()) as client:
        return listed(client.admin.ChangeRoot(ChangeRootRequest(**fields), timeout=10))


async def activated(mesh: LocalMesh, root: str) -> bool:
    """Whether a root signs now; it is refused until the other region trusts it."""
    try:
        change(mesh, change=ChangeRootRequest.ACTIVATE, fingerprint=root)
    except grpc.RpcError as error:
        if "its nodes have not all acknowledged it yet" in str(error):
            return False
        raise
    return True


async def test_a_region_that_rotates_its_root_is_believed_by_the_others(directory: Path) -> None:
    async with running(directory, "eu", "us") as (eu, us):

        async def both() -> bool:
            return (await other(eu)).answers and (await other(us)).answers

        async def sees(mesh: LocalMesh, *expected: tuple[str, str, str]) -> None:
            async def seen() -> bool:
                return roots_of(mesh) == list(expected)

            await until(seen)

        await until(both)
        ((old, _, _),) = roots_of(eu)
        new = change(eu, change=ChangeRootRequest.PREPARE)[-1][0]
        await sees(us, (old, "ACTIVE", ""), (new, "PREPARED", "eu"))
        with pytest.raises(grpc.RpcError, match="is region eu's: change it there"):
            change(us, change=ChangeRootRequest.ACTIVATE, fingerprint=new)

        await until(partial(activated, eu, new))
        change(eu, change=ChangeRootRequest.TAINT, fingerprint=old)
        await sees(us, (old, "ACTIVE", ""), (new, "ACTIVE", "eu"))

        async def warned() -> bool:
            return "region eu has tainted root" in (await us.operator.status()).health.authority_error

        await until(warned)
        # Each answers the other by what it has heard before, also after it was killed.
        await us.stop_server()
        await us.start_server()
        await until(both)
        assert roots_of(us) == [(old, "ACTIVE", ""), (new, "ACTIVE", "eu")]
        third = change(us, change=ChangeRootRequest.PREPARE)[1][0]
        await sees(eu, (old, "TAINTED", ""), (new, "ACTIVE", ""), (third, "PREPARED", "us"))
        await until(partial(activated, us, third))
        await until(both)
        change(us, change=ChangeRootRequest.TAINT, fingerprint=old)
        for mesh in (eu, us):
            change(mesh, change=ChangeRootRequest.REVOKE, fingerprint=old, force=True)
        await sees(eu, (new, "ACTIVE", ""), (third, "ACTIVE", "us"))
        await sees(us, (third, "ACTIVE", ""), (new, "ACTIVE", "eu"))
        await until(both)
