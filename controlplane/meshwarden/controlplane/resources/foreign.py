"""What resources say of other trust domains' identities."""

from collections.abc import Iterator
from typing import Any

from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.resources.access import rules_of
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import ref_of, title
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import AccessPolicy, Service, TrustDomain

_HERE = ("WorkloadEntry", "AccessPolicy", "RatePolicy")
"""Kinds that are held where a service is served."""


def foreign_faults(resource: AccessPolicy | Service) -> Iterator[FieldFault]:
    """What a resource must hold by itself."""
    if isinstance(resource, Service):
        yield from _unreadable("spec.spiffeId", resource.spec.spiffe_id)
        return
    for place, rule in rules_of(resource.spec):
        for index, caller in enumerate(getattr(rule, "from")):
            path = f"{place}.from[{index}]"
            said = [name for name in ("service", "spiffe_id", "trust_domain") if getattr(caller, name)]
            if not said:
                yield FieldFault(f"{path}.service", "is required; or give spiffeId or trustDomain")
            elif len(said) > 1 or (caller.tenant and said != ["service"]):
                text = "give tenant and service for callers of this mesh, or spiffeId, or trustDomain: one of the three"
                yield FieldFault(path, text)
            yield from _unreadable(f"{path}.spiffeId", caller.spiffe_id)


def caller_faults(path: str, caller: Any, view: View) -> Iterator[FieldFault]:
    """What a caller of another trust domain names must be there."""
    if caller.trust_domain:
        yield from _unknown(f"{path}.trustDomain", caller.trust_domain, view)
    elif caller.spiffe_id:
        yield from _unknown(f"{path}.spiffeId", _domain(caller.spiffe_id), view)


def service_faults(service: Service, view: View) -> Iterator[FieldFault]:
    """A service that another trust domain serves: that is known, and nothing here would be held."""
    if not service.spec.spiffe_id:
        return
    yield from _unknown("spec.spiffeId", _domain(service.spec.spiffe_id), view)
    for kind in _HERE:
        for other in view.of_service(kind, service.metadata.tenant, service.metadata.name):
            text = f"another trust domain serves it, so {title(ref_of(other))} would hold nowhere: delete that"
            yield FieldFault("spec.spiffeId", text)


def held_faults(kind: str, service: Service | None) -> Iterator[FieldFault]:
    """What is held where a service is served must be about one that is served here."""
    if service is not None and service.spec.spiffe_id and kind in _HERE:
        text = f"{service.spec.spiffe_id} serves it: who may call, and how much, is for its trust domain to say"
        yield FieldFault("spec.service", text)


def _unreadable(path: str, text: str) -> Iterator[FieldFault]:
    try:
        if text:
            SpiffeId.parse(text)
    except InvalidSpiffeId as error:
        yield FieldFault(path, str(error))


def _unknown(path: str, trust_domain: str, view: View) -> Iterator[FieldFault]:
    if not any(
        isinstance(one, TrustDomain) and one.spec.trust_domain == trust_domain for one in view.of("TrustDomain")
    ):
        text = f"no TrustDomain is about {trust_domain}: an operator of the mesh has to apply one first"
        yield FieldFault(path, text + "; who is of this mesh is named by tenant and service")


def _domain(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]
