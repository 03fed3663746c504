"""intruder-denied, grant-live and revoke-live: permission, and its change on open connections."""

from meshwarden.controlplane.local.check.call import (
    BILLING,
    ORDERS,
    Probes,
    becomes,
    grpc_calls,
    http_calls,
    only,
    sockets,
)
from meshwarden.controlplane.local.check.mesh import Mesh
from meshwarden.controlplane.local.check.result import require

CALLS = 20
POLICY = """\
kind: AccessPolicy
metadata: {{tenant: platform, name: check-{service}}}
spec:
  service: {service}
  allow:
  - from: [{{tenant: acme, service: {caller}}}]
"""
POLICIES = ("platform/check-orders", "platform/check-billing")


def _policies(caller: str) -> str:
    return "---\n".join(POLICY.format(service=service, caller=caller) for service in ("orders", "billing"))


async def intruder_denied(mesh: Mesh, probes: Probes) -> str:
    """Who has an identity but no permission is told so, and by name."""
    denied = await grpc_calls(probes.intruder, CALLS)
    only(denied, "PERMISSION_DENIED", "acme/intruder to orders")
    refused = await http_calls(probes.intruder, CALLS)
    only(refused, "403", "acme/intruder to billing")
    body = str(refused["bodies"][0])
    for word in ("acme/intruder", "platform/billing", "meshwarden explain"):
        require(word in body, f"the refusal does not say {word!r}: {body!r}")
    return f"{CALLS} calls PERMISSION_DENIED on gRPC, {CALLS} calls 403 through Envoy, which says: {body.strip()[:160]}"


async def grant_live(mesh: Mesh, probes: Probes) -> str:
    """A grant reaches connections that are open already, on both data planes."""
    await http_calls(probes.intruder, 1, connection="live")
    await grpc_calls(probes.intruder, 1, channel="live")
    before = sockets(probes.intruder.pid)
    await mesh.apply(_policies("intruder"))
    await becomes(probes.intruder, "grpc", "OK", "acme/intruder to orders", **ORDERS, channel="live")
    await becomes(probes.intruder, "http", "200", "acme/intruder to billing", **BILLING, connection="live")
    kept = before & sockets(probes.intruder.pid)
    require(bool(kept), "the grant made gRPC connect anew")
    return f"after apply OK and 200 on the same channel and connection ({len(kept)} TCP kept)"


async def revoke_live(mesh: Mesh, probes: Probes) -> str:
    """A revocation reaches them as well; undoes what grant-live granted."""
    before = sockets(probes.intruder.pid)
    await mesh.apply(_policies("web"))
    denied = "PERMISSION_DENIED"
    await becomes(probes.intruder, "grpc", denied, "acme/intruder to orders", **ORDERS, channel="live")
    await becomes(probes.intruder, "http", "403", "acme/intruder to billing", **BILLING, connection="live")
    kept = before & sockets(probes.intruder.pid)
    require(bool(kept), "the revocation made gRPC connect anew")
    await mesh.delete("AccessPolicy", *POLICIES)
    return f"after apply PERMISSION_DENIED and 403 on the same channel and connection ({len(kept)} TCP kept)"
