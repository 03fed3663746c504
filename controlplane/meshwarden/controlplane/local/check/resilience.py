"""control-plane-down: the mesh goes on without it."""

import asyncio

from meshwarden.controlplane.local.check.call import Probes, listening
from meshwarden.controlplane.local.check.load import loaded
from meshwarden.controlplane.local.check.mesh import Mesh, tls_client, until
from meshwarden.controlplane.local.check.result import require

AWAY_S = 10.0
BACK_S = 30.0
RESTARTED = "orders-v1-b"


async def control_plane_down(mesh: Mesh, probes: Probes) -> str:
    """Killed for ten seconds under load: no call fails, and a workload restarted meanwhile comes up."""

    async def together() -> bool | None:
        return all(node.connected for node in (await mesh.status()).nodes) or None

    async with loaded(probes) as load:
        came_up = await _restarted_while_away(mesh)
        await until(together, BACK_S, "the agents do not come back to the control plane")
        await mesh.settled()
        calls = await load.unfailing()
    require(came_up, f"{RESTARTED} came up only after the control plane was back")
    return f"away for {AWAY_S:.0f} s: {calls} calls, none failed; {RESTARTED} restarted from the agent's cache"


async def _restarted_while_away(mesh: Mesh) -> bool:
    """Takes the control plane away, and says whether a workload that was restarted came up before it was back."""
    await mesh.handle.stop_server()
    back_at = asyncio.get_running_loop().time() + AWAY_S
    try:
        pid = await mesh.handle.restart_sample(RESTARTED)
        await until(lambda: _serves(mesh, pid), AWAY_S, f"{RESTARTED} does not come up from the agent's cache")
        came_up = asyncio.get_running_loop().time() < back_at
        await asyncio.sleep(max(0.0, back_at - asyncio.get_running_loop().time()))
    finally:
        await mesh.handle.start_server()
    return came_up


async def _serves(mesh: Mesh, pid: int) -> bool | None:
    """Whether the restarted instance listens and shakes hands in TLS; without its Listener it would not listen."""
    for host, port in listening(pid):
        _, writer = await asyncio.open_connection(host, port, ssl=tls_client(mesh.roots_pem))
        writer.close()
        return True
    return None
