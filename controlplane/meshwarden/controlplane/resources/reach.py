"""Which services a rate policy is about: one, several, all of a tenant, or all there are."""

from collections.abc import Iterator
from enum import IntEnum

from meshwarden.v1.resources_pb2 import RatePolicySpec

ALL = "*"


class Width(IntEnum):
    """How far a policy reaches; a data plane may hold one of each."""

    SERVICE = 0
    """One service."""
    TENANT = 1
    """Several services of its own tenant."""
    MESH = 2
    """Services of other tenants as well."""


def named(owner: str, spec: RatePolicySpec) -> Iterator[tuple[str, str]]:
    """The services that a policy of a tenant names: (tenant, name), either of which may be `ALL`."""
    for name in (spec.service,) if spec.service else spec.services:
        yield full(owner, name)


def full(owner: str, name: str) -> tuple[str, str]:
    """What a policy of `owner` means by a service's name."""
    tenant, slash, rest = name.partition("/")
    return (tenant, rest) if slash else (owner, name)


def covers(owner: str, spec: RatePolicySpec, service: tuple[str, str]) -> bool:
    """Whether a policy of a tenant is about a service, (tenant, name)."""
    return any(tenant in (ALL, service[0]) and name in (ALL, service[1]) for tenant, name in named(owner, spec))


def width(owner: str, spec: RatePolicySpec) -> Width:
    """How far a policy of a tenant reaches."""
    if spec.service:
        return Width.SERVICE
    return Width.TENANT if all(tenant == owner for tenant, _ in named(owner, spec)) else Width.MESH
