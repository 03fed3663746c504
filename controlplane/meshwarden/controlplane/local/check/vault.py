"""vault-root and vault-secret: that Vault is the root, and that a secret of its KV is used."""

import asyncio
import urllib.request

from cryptography import x509

from meshwarden.certs.issue import name_text
from meshwarden.controlplane.local.check.call import Probes
from meshwarden.controlplane.local.check.mesh import Mesh, until
from meshwarden.controlplane.local.check.result import CheckFailed, require
from meshwarden.controlplane.local.handle import VaultInfo

ARRIVE_S = 20.0


async def vault_root(mesh: Mesh, probes: Probes) -> str:
    """The mesh's root is the certificate that OpenBao's PKI engine shows, or has shown if it is away by now."""
    vault = mesh.handle.vault
    if vault is None:
        raise CheckFailed("this mesh was started without --vault")
    try:
        pem, when = await asyncio.to_thread(_root_pem, vault), ""
    except OSError:
        pem, when = vault.root_pem, ", which is away"
    shown = x509.load_pem_x509_certificate(pem)
    ours = x509.load_pem_x509_certificates(mesh.roots_pem)
    require(ours == [shown], "the mesh's root is not that of OpenBao")
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


def _root_pem(vault: VaultInfo) -> bytes:
    with urllib.request.urlopen(f"{vault.address}/v1/{vault.mount}/ca/pem", timeout=5) as response:  # noqa: S310 - ours
        return bytes(response.read())
