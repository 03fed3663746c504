"""An ingress in no data plane's dialect: which calls go where, and as whom.

A caller from outside is of a tenant, by what it proves, and its call goes on as that tenant's own workload: the service
of a workload entry that lends the ingress its identity. So nothing about the call's tenant is ever a header, and all
policies hold as for any other caller.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.controlplane.resources.ingress import covers, lends, runs
from meshwarden.controlplane.resources.reach import full


@dataclass(frozen=True)
class Where:
    """A pattern of paths: one, or with `below` one and all that has it as its first segments ("/" is all)."""

    path: str
    below: bool

    def both(self, method: Method) -> "Where | Method | None":
        """The pattern of the calls that both mean, verbs aside; None if there are none."""
        if not self.below:
            return self if method.fits(self.path, method.verb) else None
        root = self.path.rstrip("/")
        if method.prefix and self.path.startswith(method.path):
            return self
        # What is longer is below, or it is "/ordersx".
        if method.path == root or method.path.startswith(f"{root}/"):
            return method
        return None


@dataclass(frozen=True)
class Target:
    """Where some calls go.

    Attributes:
        hosts: their hosts; "*.example.com" has all below, "*" any.
        where: their paths.
        service: that is called.
        is_public: whether those who prove nothing may call, as the ingress itself.
    """

    hosts: tuple[str, ...]
    where: Where
    service: Name
    is_public: bool

    def is_for(self, domain: str) -> bool:
        """Whether all calls of a domain, which may have a star itself, are meant by some host."""
        return any(covers(host, domain) for host in self.hosts)


@dataclass(frozen=True)
class Ingress:
    """An ingress on one node.

    Attributes:
        service: that it is.
        targets: where calls go; the first that fits decides.
        speakers: as whom it calls for each tenant's callers: `{tenant: service}`; none for a tenant that lends nothing.
        spec: the `v1.IngressSpec`: where it listens, and how callers prove of which tenant they are.
    """

    service: Name
    targets: tuple[Target, ...]
    speakers: Mapping[str, Name]
    spec: Any

    def leads_to(self, mesh: Mesh, service: Name) -> bool:
        """Whether its calls may go to a service: what its tenant sees, and is of the mesh."""
        return mesh.sees(self.service.tenant, service) and not mesh.is_external(service)

    def domains(self) -> list[str]:
        """All hosts that some target names, in order."""
        return sorted({host for target in self.targets for host in target.hosts})


def find(mesh: Mesh, node: str, entry: Any) -> Ingress | None:
    """The ingress that a workload entry runs on a node; None if it runs none."""
    service = Name(entry.metadata.tenant, entry.spec.service)
    # Of two, which validation refuses, the first by name counts.
    message = next(iter(mesh.of_service("Ingress", service).values()), None)
    if message is None or not runs(entry):
        return None
    speakers = {
        one.metadata.tenant: Name(one.metadata.tenant, one.spec.service) for one in _lenders(mesh, node, service)
    }
    speakers[service.tenant] = service
    return Ingress(service, tuple(_targets(message)), speakers, message.spec)


def _targets(message: Any) -> Iterator[Target]:
    for said in message.spec.routes:
        below = said.WhichOneof("where") == "path_prefix"
        where = Where(said.path_prefix if below else said.path, below)
        yield Target(tuple(said.hosts), where, Name(*full(message.metadata.tenant, said.service)), said.public)


def _lenders(mesh: Mesh, node: str, service: Name) -> Iterator[Any]:
    # In the order of their names, the last of which is taken first: of several of a tenant the first counts.
    for entry in reversed(mesh.entries_on(node)):
        if lends(entry, service):
            yield entry
