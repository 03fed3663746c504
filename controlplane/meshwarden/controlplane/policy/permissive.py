"""Which services take calls in the clear beside those by mTLS, what may be called so, and until when."""

from dataclasses import dataclass

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Method, Name


@dataclass(frozen=True)
class Permissive:
    """Calls in the clear: of these methods, by anybody, until a moment in seconds since 1970."""

    methods: tuple[Method, ...]
    until_s: float

    def holds(self, at_s: float | None) -> bool:
        """Whether it is still that time; at a moment that nobody knows it is not."""
        return at_s is not None and at_s < self.until_s

    def turn(self, at_s: float) -> float | None:
        """When it ends; None if it has."""
        return self.until_s if at_s < self.until_s else None


def find(mesh: Mesh, service: Name) -> Permissive | None:
    """What a service says of calls in the clear; None if nothing, as nearly all do."""
    message = mesh.find("Service", *service)
    if message is None or not message.spec.HasField("permissive"):
        return None
    said = message.spec.permissive
    return Permissive(tuple(map(Method.parse, said.methods)), said.until.seconds + said.until.nanos / 1e9)
