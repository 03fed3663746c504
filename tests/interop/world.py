"""A mesh whose clients and servers are Go's own gRPC."""

import sys
from pathlib import Path
from typing import Any

from tests.integration.policy_rig import made
from tests.integration.test_choice import ORDERS, PEER, Asked, World

from meshwarden.controlplane.policy.mesh import Change

VERSION = "go/1.85.0"
GET, PUT = "/meshwarden.examples.v1.Orders/Get", "/meshwarden.examples.v1.Orders/Put"


class Go(World):
    """Peers of Go; `peer` is their program."""

    def __init__(self, root: Path, peer: str) -> None:
        super().__init__(root)
        self.peer = peer

    async def client(self, tenant: str = "acme", service: str = "web") -> Asked:
        """Starts a client as a workload."""
        return Asked(await self.program(tenant, service, VERSION, self.peer, "client"))

    async def python(self) -> Asked:
        """Starts a client of C-core as a workload."""
        return Asked(await self.program("acme", "web", "c-core/58.0.0", sys.executable, str(PEER), "call"))

    async def serve(self, *ports: int, kind: str = "server", service: tuple[str, str] = ORDERS) -> Any:
        """Starts a server as a workload at these ports: over xDS, or "tls", without."""
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)
        return await self.program(*service, VERSION, self.peer, kind, *addresses, listen=addresses)

    def rules(self, *rules: dict[str, Any], **more: Any) -> None:
        """What becomes of calls of orders, from now on."""
        self.policy(rules=list(rules), **more)


def endpoint(port: int, version: str = "v1", service: str = "orders") -> Change:
    spec = {"service": service, "address": "127.0.0.1", "port": port, "version": version}
    return made("Endpoint", "platform", f"e{port}", spec)


def access(**spec: Any) -> Change:
    """Who may call orders."""
    return made("AccessPolicy", "platform", "orders", {"service": "orders", **spec})
