"""ExternalService to neutral form: what lies outside of the mesh and is called by a name of it."""

import ipaddress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.mention import is_stream
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import AnyCaller, Caller, Foreign, Limits, Name
from meshwarden.v1.resources_pb2 import ExternalServiceSpec

_DEFAULT_PORTS: Final = {ExternalServiceSpec.HTTP: 80, ExternalServiceSpec.HTTPS: 443}
_TLS: Final = (ExternalServiceSpec.HTTPS, ExternalServiceSpec.TLS)
_CONNECT: Final = timedelta(seconds=5)


@dataclass(frozen=True)
class External:
    """An external service.

    Attributes:
        service: its name.
        hosts: where it is: `((address, port), …)`.
        authority: the host that HTTP names; empty for connections.
        server: the name that its certificate must have; empty in the clear.
        ca: the authorities to trust, in PEM; empty for the system's.
        connect: how long a connection may take to come about.
    """

    service: Name
    hosts: tuple[tuple[str, int], ...]
    authority: str
    server: str
    ca: str
    connect: timedelta

    @property
    def is_http(self) -> bool:
        """Whether it takes calls, and not connections alone."""
        return bool(self.authority)

    @property
    def is_named(self) -> bool:
        """Whether DNS says where some of it is."""
        return any(not is_address(address) for address, _ in self.hosts)


def find(mesh: Mesh, service: Name) -> External | None:
    """The external service of a name, if there is one."""
    message = mesh.find("ExternalService", *service)
    if message is None:
        return None
    spec = message.spec
    hosts = tuple((host.address, host.port) for host in spec.hosts)
    address, port = hosts[0]
    server = (spec.tls.sni or address) if spec.protocol in _TLS else ""
    authority = ""
    if not is_stream(message):
        host = server or (f"[{address}]" if ":" in address else address)
        authority = host if port == _DEFAULT_PORTS[spec.protocol] else f"{host}:{port}"
    connect = spec.connect_timeout.ToTimedelta() if spec.HasField("connect_timeout") else _CONNECT
    return External(service, hosts, authority, server, spec.tls.ca, connect)


def is_address(text: str) -> bool:
    """Whether a host is given by its IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def access_of(said: Access, tenant: str) -> Access:
    """What of it is about a tenant's callers: nobody else is told who may call."""

    def own(caller: AnyCaller) -> bool:
        return isinstance(caller, Caller) and caller.tenant == tenant

    return replace(
        said,
        grants=tuple(one for one in said.grants if own(one.caller)),
        denials=tuple(one for one in said.denials if own(one.caller)),
        revoked=tuple(one for one in said.revoked if not isinstance(one, Foreign) and one.tenant == tenant),
        serials=(),  # an Envoy's own certificate calls nobody here
        shadow=None,
    )


def limits_of(said: Limits, tenant: str) -> Limits | None:
    """What of it is about a tenant's calls; None if nothing is."""
    limit = said.find(tenant)
    return replace(said, limits=(limit,)) if limit is not None else None
