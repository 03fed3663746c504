"""Runs the checks in order. Each is named as users know it; a failed one does not keep the next from running."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from meshwarden.controlplane.local.check import access, identity, resilience, telemetry, traffic, transport, vault
from meshwarden.controlplane.local.check.call import Probes
from meshwarden.controlplane.local.check.mesh import Mesh
from meshwarden.controlplane.local.check.probe import probe
from meshwarden.controlplane.local.check.result import CheckFailed, CheckResult
from meshwarden.controlplane.local.handle import MeshHandle

Check = Callable[[Mesh, Probes], Awaitable[str]]

CHECKS: dict[str, Check] = {
    "svid-valid": identity.svid_valid,
    "mtls-grpc": transport.mtls_grpc,
    "mtls-envoy": transport.mtls_envoy,
    "plaintext-refused": transport.plaintext_refused,
    "foreign-ca-refused": transport.foreign_ca_refused,
    "intruder-denied": access.intruder_denied,
    "grant-live": access.grant_live,
    "revoke-live": access.revoke_live,
    "split": traffic.split,
    "rate-limit": traffic.rate_limit,
    "tenant-unspoofable": traffic.tenant_unspoofable,
    "rotation": identity.rotation,
    "control-plane-down": resilience.control_plane_down,
    "trace": telemetry.trace,
    "change-trace": telemetry.change_trace,
    "metrics": telemetry.metrics,
    "graph": telemetry.graph,
    "root-rotation": identity.root_rotation,
}
VAULT_CHECKS: dict[str, Check] = {"vault-root": vault.vault_root, "vault-secret": vault.vault_secret}
# The first of all and the last, of those that run while OpenBao is stopped.
AWAY: dict[str, Check] = {"vault-away": vault.vault_away}
BACK: dict[str, Check] = {"vault-back": vault.vault_back}


def checks_of(*, vault: bool, vault_away: bool) -> dict[str, Check]:
    """The checks of a mesh whose root is in Vault or not, and of whether that is stopped meanwhile."""
    checks = {**VAULT_CHECKS, **CHECKS} if vault else CHECKS
    return {**AWAY, **checks, **BACK} if vault_away else dict(checks)


async def run_checks(handle: MeshHandle, report: Callable[[CheckResult], None]) -> None:
    """Runs every check against the running mesh and tells `report` of each as it ends."""
    mesh = Mesh(handle)
    left = checks_of(vault=handle.vault is not None, vault_away=handle.vault_away)
    try:
        async with _probes(mesh) as probes:
            for name in tuple(left):
                report(await _run(name, left.pop(name), mesh, probes))
    except (CheckFailed, OSError) as error:
        for name in left:
            report(CheckResult(name, False, f"not run: {error}"))


async def _run(name: str, check: Check, mesh: Mesh, probes: Probes) -> CheckResult:
    try:
        return CheckResult(name, True, await check(mesh, probes))
    except CheckFailed as failed:
        return CheckResult(name, False, str(failed))
    except Exception as error:  # what a check did not foresee is no reason to keep the result from whoever waits for it
        return CheckResult(name, False, f"{type(error).__name__}: {error}")


@contextlib.asynccontextmanager
async def _probes(mesh: Mesh) -> AsyncIterator[Probes]:
    """Starts a probe for each client identity, side by side with the samples."""
    node = str(mesh.up["agents"][0]["node"])
    handle, socket = mesh.handle, mesh.agent_socket(node)
    async with contextlib.AsyncExitStack() as stack:
        acme, globex, intruder = [
            await stack.enter_async_context(
                probe(f"probe-{name}", handle.agent, socket, entry, handle.logs, handle.environment)
            )
            for name, entry in (("acme", "acme/web"), ("globex", "globex/web"), ("intruder", "acme/intruder"))
        ]
        yield Probes(acme, globex, intruder)
