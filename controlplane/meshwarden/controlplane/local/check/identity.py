"""svid-valid and rotation: what certificates say, and that they change without a failed call."""

import asyncio
from datetime import timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.verify import PeerRefused, verify_chain
from meshwarden.controlplane.local.check.call import Probes
from meshwarden.controlplane.local.check.load import loaded
from meshwarden.controlplane.local.check.mesh import Mesh, until
from meshwarden.controlplane.local.check.result import CheckFailed, require

LIFE = timedelta(hours=1)
RENEWED_S = 30.0
REFUSED_S = 5.0


def _published(state_dir: Path) -> list[Path]:
    """Every certificate file that the mesh has written for somebody."""
    return sorted({path.resolve() for path in state_dir.rglob("tls.crt")})


async def svid_valid(mesh: Mesh, probes: Probes) -> str:
    """Every certificate is a valid SPIFFE leaf whose whole life is an hour at the most."""
    bundles = {mesh.trust_domain: Bundle.parse_pem(mesh.trust_domain, mesh.roots_pem)}
    seen = set()
    for path in _published(mesh.handle.state_dir):
        chain = x509.load_pem_x509_certificates(path.read_bytes())
        try:
            peer = verify_chain([certificate.public_bytes(Encoding.DER) for certificate in chain], bundles, utc_now())
        except PeerRefused as refused:
            raise CheckFailed(f"{path}: {refused}") from None
        life = chain[0].not_valid_after_utc - chain[0].not_valid_before_utc
        require(life <= LIFE, f"{peer.spiffe_id} lives {life}")
        seen.add(str(peer.spiffe_id))
    wanted = {item["spiffe_id"] for item in mesh.up["workloads"]}
    require(wanted <= seen, f"no certificate on disk for {sorted(wanted - seen)}")
    return f"{len(seen)} identities, each a valid leaf of at most {LIFE}"


async def rotation(mesh: Mesh, probes: Probes) -> str:
    """Renewing every certificate under load fails no call; nor does it where OpenBao, which signs, is away."""
    vault = mesh.handle.vault
    if vault is not None and vault.form == "direct" and not await mesh.vault_answers():
        return await _rotation_refused(mesh, probes)
    async with loaded(probes) as load:
        renewed = await all_renewed(mesh)
        # New files take a second to reach gRPC's handshakes.
        await asyncio.sleep(3)
        calls = await load.unfailing()
    return f"{renewed} certificates renewed, {calls} calls, none failed"


async def all_renewed(mesh: Mesh) -> int:
    """Has every certificate renewed; returns how many there are."""
    before = await _serials(mesh)

    async def renewed() -> int | None:
        now = await _serials(mesh)
        return len(now) if all(now.get(name, serial) != serial for name, serial in before.items()) else None

    await mesh.renew_svids()
    return await until(renewed, RENEWED_S, "not every certificate is renewed")


async def _rotation_refused(mesh: Mesh, probes: Probes) -> str:
    before = await _serials(mesh)
    async with loaded(probes) as load:
        await mesh.renew_svids()
        await asyncio.sleep(REFUSED_S)
        calls = await load.unfailing()
    require(await _serials(mesh) == before, "certificates have changed, though nobody can sign any")
    return f"OpenBao, which signs, is away: {len(before)} certificates stay as they are, {calls} calls, none failed"


async def root_rotation(mesh: Mesh, probes: Probes) -> str:
    """Another root comes to sign, and nobody's certificate leads to the old one any more, under load: no call fails."""
    if not await mesh.vault_answers():
        refused = await _root_refused(mesh)
        return f"OpenBao, which has the root, is away: no other is made ({refused})"
    await make_room(mesh)
    async with loaded(probes) as load:
        # A check that was killed has left one.
        if not await mesh.roots("PREPARED"):
            refused = await mesh.change_root("PREPARE")
            require(not refused, f"no root could be prepared: {refused}")
        (new,), (old,) = await mesh.roots("PREPARED"), await mesh.roots("ACTIVE")

        async def activated() -> bool | None:
            # It is refused until every node has acknowledged the root.
            return not await mesh.change_root("ACTIVATE", new.fingerprint) or None

        await until(activated, RENEWED_S, "not every node has acknowledged the root")
        refused = await mesh.change_root("TAINT", old.fingerprint)
        require(not refused, f"the old root could not be tainted: {refused}")

        async def left() -> bool | None:
            tainted, active = await mesh.roots("TAINTED"), await mesh.roots("ACTIVE")
            return (not any(root.used_by for root in tainted) and all(root.used_by for root in active)) or None

        await until(left, RENEWED_S, "certificates still lead to the old root")
        # New files take a second to reach gRPC's handshakes.
        await asyncio.sleep(3)
        calls = await load.unfailing()
    return f"all certificates lead to another root, {calls} calls, none failed"


async def make_room(mesh: Mesh) -> None:
    """Drops the roots that checks before have left tainted and nobody uses: a mesh has room for eight.

    No connection was made with one: they were tainted before this mesh was started.
    """
    for root in await mesh.roots("TAINTED"):
        if not root.used_by:
            refused = await mesh.change_root("REVOKE", root.fingerprint, force=True)
            require(not refused, f"root {root.fingerprint[:16]}, which an earlier check left, stays: {refused}")


async def _root_refused(mesh: Mesh) -> str:
    """How a change of roots is refused while whoever keeps them is away."""
    before = await mesh.roots("PREPARED")
    try:
        await mesh.change_root("PREPARE")
    except grpc.aio.AioRpcError as error:
        require(await mesh.roots("PREPARED") == before, "the roots have changed")
        require(error.code() is grpc.StatusCode.UNAVAILABLE, f"refused as {error.code().name}: {error.details()}")
        return "UNAVAILABLE"
    raise CheckFailed("another root was prepared, without OpenBao")


async def _serials(mesh: Mesh) -> dict[str, str]:
    status = await mesh.status()
    return {f"{node.node}/{item.id}": item.serial for node in status.nodes for item in node.workloads if item.serial}
