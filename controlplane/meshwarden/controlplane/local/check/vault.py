"""vault-root and vault-secret: that Vault is the root, and that a secret of its KV is used.

vault-away and vault-back: that the mesh does without for as long as the other checks take.
"""

import asyncio

from cryptography import x509

from meshwarden.certs.issue import name_text
from meshwarden.controlplane.local.check.call import Probes, grpc_calls
from meshwarden.controlplane.local.check.identity import all_renewed
from meshwarden.controlplane.local.check.mesh import Mesh, until
from meshwarden.controlplane.local.check.result import CheckFailed, require

ARRIVE_S = 20.0
NOTICED_S = 30.0
BACK_S = 90.0


async def vault_root(mesh: Mesh, probes: Probes) -> str:
    """The mesh's root is the certificate that OpenBao's PKI engine shows, or has shown if it is away by now."""
    vault = mesh.handle.vault
    if vault is None:
        raise CheckFailed("this mesh was started without --vault")
    try:
        pem, when = await asyncio.to_thread(mesh.vault_root_pem), ""
    except OSError:
        pem, when = vault.root_pem, ", which is away"
    shown = x509.load_pem_x509_certificate(pem)
    ours = x509.load_pem_x509_certificates(mesh.roots_pem)
    # Others, of before a rotation, may be trusted still.
    require(shown in ours, "the mesh's root is not that of OpenBao")
    return f"root {name_text(shown.subject)} of OpenBao at {vault.address}{when}"


async def vault_secret(mesh: Mesh, probes: Probes) -> str:
    """The secret in OpenBao's KV is what the control plane shows its OTLP backend."""
    vault = mesh.handle.vault
    if vault is None:
        raise CheckFailed("this mesh was started without --vault")
    otlp = mesh.handle.otlp

    async def shown() -> bool | None:
        return (otlp is not None and vault.otlp_authorization in otlp.authorizations) or None

    await until(shown, ARRIVE_S, "the OTLP backend is not shown the secret")
    return "the control plane's OTLP export carries the authorization that lies in OpenBao's KV"


async def vault_away(mesh: Mesh, probes: Probes) -> str:
    """OpenBao is stopped, and stays so until vault-back; the control plane says so."""
    # What is had of it at the start: the secret, and the certificate of each program on its node.
    await vault_secret(mesh, probes)
    for probe in (probes.acme, probes.globex, probes.intruder):
        await grpc_calls(probe, 1)
    await mesh.handle.control.stop_vault()

    async def told() -> str | None:
        return (await mesh.status()).health.authority_error or None

    said = await until(told, NOTICED_S, "the control plane does not say that OpenBao is away")
    require(not await mesh.vault_answers(), "OpenBao still answers")
    return f"OpenBao is stopped for all checks that follow; status says: {said[:120]}"


async def vault_back(mesh: Mesh, probes: Probes) -> str:
    """OpenBao, which was away all the time, comes back: whatever has waited for it goes on by itself."""
    require(not await mesh.vault_answers(), "OpenBao was there")
    await mesh.handle.control.start_vault_again()

    async def well() -> bool | None:
        health = (await mesh.status()).health
        faults = [health.authority_error, health.settings_error, health.secrets_error]
        faults += [backend.error for backend in health.backends]
        if any(faults):
            raise CheckFailed("; ".join(filter(None, faults)))
        return True

    await until(well, BACK_S, "the control plane does not recover by itself")
    renewed = await all_renewed(mesh)
    return f"whatever has waited goes on, and {renewed} certificates were renewed"
