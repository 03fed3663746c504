"""SPIFFE IDs: parsed to the letter of the standard, and given their meaning in this mesh.

workload       spiffe://<trust domain>/tenant/<tenant>/service/<service>
node agent     spiffe://<trust domain>/region/<region>/node/<node>
control plane  spiffe://<trust domain>/region/<region>/controlplane
operator       spiffe://<trust domain>/operator/<name>
               spiffe://<trust domain>/tenant/<tenant>/operator/<name>
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from meshwarden.certs.error import CertsError

MAX_SIZE_BYTES = 2048
_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
# What we make ourselves is narrower than what the standard allows: tenants, services, nodes and regions are DNS labels.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


_SHOWN = 100


class InvalidSpiffeId(CertsError):
    """A text is not a SPIFFE ID."""


class Role(Enum):
    """What an identity is in this mesh."""

    WORKLOAD = "workload"
    NODE = "node"
    CONTROL_PLANE = "controlplane"
    OPERATOR = "operator"
    TENANT_OPERATOR = "tenant operator"
    OTHER = "other"


def _shown(text: str) -> str:
    """A text as an error shows it: a stranger's is as long as the stranger likes."""
    return repr(text[:_SHOWN])


def check_trust_domain(text: str) -> str:
    """Returns the text if it is a trust domain's name.

    Raises:
        InvalidSpiffeId: it isn't.
    Source:
        SPIFFE-ID §2.1.
    """
    if _TRUST_DOMAIN.fullmatch(text) is None:
        raise InvalidSpiffeId(f"trust domain {_shown(text)}: use 1 to 255 of a-z, 0-9, '.', '-', '_'")
    return text


def account_of(trust_domain: str) -> str:
    """Returns by what name the callers of another trust domain are limited and counted; see `SpiffeId.account`."""
    return _SCHEME + trust_domain


@dataclass(frozen=True)
class SpiffeId:
    """A SPIFFE ID. Construct it by `parse` or by the constructor of its role: both check it."""

    trust_domain: str
    # With its leading slash; never empty.
    path: str

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """Reads a SPIFFE ID as a leaf certificate carries it: with a path.

        Raises:
            InvalidSpiffeId: the text is longer than 2048 bytes, of another scheme or case, has a port, user, query,
                fragment or percent sign, an empty or dotted segment, a trailing slash, or no path.
        Source:
            SPIFFE-ID §2 to §2.4; X509-SVID §2.
        """
        if len(text) > MAX_SIZE_BYTES:
            raise InvalidSpiffeId(f"SPIFFE ID is longer than {MAX_SIZE_BYTES} bytes")
        if not text.startswith(_SCHEME):
            raise InvalidSpiffeId(f"{_shown(text)}: a SPIFFE ID starts with {_SCHEME!r}, in lower case")
        trust_domain, _, rest = text[len(_SCHEME) :].partition("/")
        check_trust_domain(trust_domain)
        if not rest:
            raise InvalidSpiffeId(f"{_shown(text)}: a workload's SPIFFE ID has a path")
        for segment in rest.split("/"):
            if _SEGMENT.fullmatch(segment) is None or segment in (".", ".."):
                raise InvalidSpiffeId(f"{_shown(text)}: segment {_shown(segment)} of the path isn't allowed")
        return cls(trust_domain, "/" + rest)

    @classmethod
    def workload(cls, trust_domain: str, tenant: str, service: str) -> "SpiffeId":
        """Returns the identity of a service's workloads."""
        return cls.make(trust_domain, "tenant", tenant, "service", service)

    @classmethod
    def for_node(cls, trust_domain: str, region: str, node: str) -> "SpiffeId":
        """Returns the identity of a node's agent."""
        return cls.make(trust_domain, "region", region, "node", node)

    @classmethod
    def for_operator(cls, trust_domain: str, name: str, tenant: str | None = None) -> "SpiffeId":
        """Returns the identity of an operator: of the mesh, or of one tenant."""
        of_tenant = () if tenant is None else ("tenant", tenant)
        return cls.make(trust_domain, *of_tenant, "operator", name)

    @classmethod
    def control_plane(cls, trust_domain: str, region: str) -> "SpiffeId":
        """Returns the identity of a region's control plane."""
        return cls.make(trust_domain, "region", region, "controlplane")

    @classmethod
    def make(cls, trust_domain: str, *segments: str) -> "SpiffeId":
        """Returns the identity with a path of these segments, each a DNS label.

        Raises:
            InvalidSpiffeId: the trust domain or a segment isn't allowed.
        """
        for segment in segments:
            if _LABEL.fullmatch(segment) is None:
                raise InvalidSpiffeId(f"{_shown(segment)} is not a name: use a-z, 0-9 and inner '-', at most 63")
        return cls(check_trust_domain(trust_domain), "/" + "/".join(segments))

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"

    @cached_property
    def _meaning(self) -> tuple[Role, dict[str, str]]:
        segments = self.path[1:].split("/")
        # A path that we would not have made has no meaning here, however much it looks like one.
        if any(_LABEL.fullmatch(segment) is None for segment in segments):
            return Role.OTHER, {}
        match segments:
            case ["tenant", tenant, "service", service]:
                return Role.WORKLOAD, {"tenant": tenant, "service": service}
            case ["region", region, "node", node]:
                return Role.NODE, {"region": region, "node": node}
            case ["region", region, "controlplane"]:
                return Role.CONTROL_PLANE, {"region": region}
            case ["operator", name]:
                return Role.OPERATOR, {"operator": name}
            case ["tenant", tenant, "operator", name]:
                return Role.TENANT_OPERATOR, {"tenant": tenant, "operator": name}
        return Role.OTHER, {}

    @property
    def role(self) -> Role:
        """What this identity is in the mesh; `OTHER` if the path is none of ours."""
        return self._meaning[0]

    def find(self, word: str) -> str | None:
        """Returns the name that stands for a word of the path: tenant, service, region, node or operator."""
        return self._meaning[1].get(word)

    def account(self, home: str) -> str:
        """Returns by which tenant's name calls of this identity are limited and counted in the trust domain `home`.

        Its tenant's, if it is of `home`; empty if it has none. All of another trust domain together are
        "spiffe://<trust domain>", whatever their paths say: that is no tenant's name, and who may make up identities
        there makes up no more than this one.
        """
        return self.tenant or "" if self.trust_domain == home else account_of(self.trust_domain)

    @property
    def tenant(self) -> str | None:
        """The tenant of a workload or of a tenant's operator."""
        return self.find("tenant")

    @property
    def service(self) -> str | None:
        """The service of a workload."""
        return self.find("service")

    @property
    def region(self) -> str | None:
        """The region of a node or a control plane."""
        return self.find("region")

    @property
    def node(self) -> str | None:
        """The name of a node."""
        return self.find("node")

    @property
    def operator(self) -> str | None:
        """The name of an operator."""
        return self.find("operator")


class ForeignId(SpiffeId):
    """An identity of another trust domain, as it is seen in ours: its path means nothing here.

    So it has no role, no tenant and no service, whatever names of ours are in it; `account` says whose its calls are.
    """

    @cached_property
    def _meaning(self) -> tuple[Role, dict[str, str]]:
        return Role.OTHER, {}
