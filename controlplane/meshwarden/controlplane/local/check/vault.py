"""vault-root and vault-secret: that Vault is the root, and that a secret of its KV is used."""

from cryptography import x509

from meshwarden.controlplane.local.check.call import Probes
from meshwarden.controlplane.local.check.mesh import Mesh, until
from meshwarden.controlplane.local.check.result import CheckFailed, require

ARRIVE_S = 20.0


async def vault_root(mesh: Mesh, probes: Probes) -> str:
    """The mesh's root is the certificate that OpenBao's PKI engine shows."""
    vault = mesh.handle.vault
    if vault is None:
        raise CheckFailed("this mesh was started without --vault")
    shown = x509.load_pem_x509_certificate(await vault.root_pem())
    ours = x509.load_pem_x509_certificates(mesh.roots_pem)
    require(ours == [shown], "the mesh's root is not that of OpenBao")
    return f"root {shown.subject.rfc4514_string()} of OpenBao at {vault.address}"


async def vault_secret(mesh: Mesh, probes: Probes) -> str:
    """The secret in OpenBao's KV is what the control plane shows its OTLP backend."""
    vault = mesh.handle.vault
    if vault is None:
        raise CheckFailed("this mesh was started without --vault")
    secret = await vault.read_secret()

    async def shown() -> bool | None:
        return (secret in mesh.handle.receiver.authorizations()) or None

    await until(shown, ARRIVE_S, "the OTLP backend is not shown the secret")
    return "the control plane's OTLP export carries the authorization that lies in OpenBao's KV"
