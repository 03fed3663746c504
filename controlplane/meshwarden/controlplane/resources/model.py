"""Names, keys and stored bytes of resources.

A resource travels as the `Resource` union and is stored under `/resource/<Kind>/<tenant>/<name>`; a Tenant is its own
tenant there.
"""

from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import (
    SLO,
    AccessPolicy,
    Drain,
    Endpoint,
    ExternalService,
    Ingress,
    RatePolicy,
    Record,
    Resource,
    Rollout,
    RoutePolicy,
    Service,
    Tenant,
    TrustDomain,
    WorkloadEntry,
)

OfService = WorkloadEntry | Endpoint | AccessPolicy | RoutePolicy | RatePolicy | SLO | Ingress
"""What speaks of a service."""
AnyResource = Tenant | Service | ExternalService | OfService | TrustDomain | Drain | Rollout

KINDS: Final[Mapping[str, type[Message]]] = {
    kind.DESCRIPTOR.name: kind
    for kind in (
        Tenant,
        Service,
        ExternalService,
        WorkloadEntry,
        Endpoint,
        AccessPolicy,
        RoutePolicy,
        RatePolicy,
        SLO,
        TrustDomain,
        Drain,
        Ingress,
        Rollout,
    )
}
"""{kind: message class}, in the order in which they need each other."""

_FIELDS: Final = {
    type(getattr(Resource(), field.name)).DESCRIPTOR.name: field.name for field in Resource.DESCRIPTOR.fields
}
ROOT: Final = "/resource/"


def field_of(kind: str) -> str:
    """Returns the union's field for a kind.

    Raises:
        KeyError: there is no such kind.
    """
    return str(_FIELDS[kind])


def wrap(message: Message) -> Resource:
    """Puts a message of any kind into the union. The message is copied."""
    resource = Resource()
    getattr(resource, _FIELDS[message.DESCRIPTOR.name]).CopyFrom(message)
    return resource


def unwrap(resource: Resource) -> AnyResource:
    """Returns the message inside, not a copy.

    Raises:
        ValueError: the union is empty.
    """
    field = resource.WhichOneof("resource")
    if field is None:
        raise ValueError("the resource is empty: one of its kinds must be set")
    message: AnyResource = getattr(resource, field)
    return message


def kind_of(resource: Resource | Message) -> str:
    """Returns the kind, "Service" for one."""
    return str((unwrap(resource) if isinstance(resource, Resource) else resource).DESCRIPTOR.name)


def ref_of(resource: Resource | AnyResource) -> ResourceRef:
    """Returns the name of a resource; the tenant of a Tenant is its own name."""
    message = unwrap(resource) if isinstance(resource, Resource) else resource
    kind = message.DESCRIPTOR.name
    tenant = message.metadata.name if kind == "Tenant" else message.metadata.tenant
    return ResourceRef(kind=kind, tenant=tenant, name=message.metadata.name)


def key_of(resource: ResourceRef | Resource | AnyResource) -> str:
    """Returns the store key."""
    ref = resource if isinstance(resource, ResourceRef) else ref_of(resource)
    return f"{ROOT}{ref.kind}/{ref.tenant}/{ref.name}"


def parse_key(key: str) -> ResourceRef:
    """Reads a store key.

    Raises:
        ValueError: it is not the key of a resource.
    """
    parts = key.removeprefix(ROOT).split("/")
    if not key.startswith(ROOT) or len(parts) != 3 or parts[0] not in KINDS or not all(parts):
        raise ValueError(f"{key!r} is not the key of a resource")
    return ResourceRef(kind=parts[0], tenant=parts[1], name=parts[2])


def prefix_of(kind: str = "", tenant: str = "") -> str:
    """Returns the key prefix of every resource, of a kind, or of a kind in a tenant.

    Raises:
        ValueError: a tenant without a kind has no prefix of its own.
    """
    if tenant and not kind:
        raise ValueError("a tenant's resources of every kind lie below several prefixes")
    return ROOT + (f"{kind}/" if kind else "") + (f"{tenant}/" if tenant else "")


def title(ref: ResourceRef) -> str:
    """Names a resource for people: "Service platform/orders", "Tenant acme"."""
    return f"Tenant {ref.name}" if ref.kind == "Tenant" else f"{ref.kind} {ref.tenant}/{ref.name}"


def normalise(resource: Resource) -> Resource:
    """Returns a copy as it is stored: `kind` set, a Tenant without tenant, a spec present, no record."""
    copy = Resource()
    copy.CopyFrom(resource)
    message = unwrap(copy)
    message.kind = kind_of(copy)
    message.spec.SetInParent()
    message.metadata.ClearField("record")
    if message.kind == "Tenant":
        message.metadata.ClearField("tenant")
    return copy


def encode(resource: Resource) -> bytes:
    """Returns the bytes to store. The record's revision is left out: the store knows it."""
    copy = Resource()
    copy.CopyFrom(resource)
    unwrap(copy).metadata.record.ClearField("revision")
    return copy.SerializeToString(deterministic=True)


def decode(value: bytes, revision: int) -> Resource:
    """Reads stored bytes of a record at `revision`.

    Raises:
        ValueError: the bytes hold no resource of a kind that we know.
    """
    resource = Resource.FromString(value)
    unwrap(resource).metadata.record.revision = revision
    return resource


def record_of(resource: Resource) -> Record:
    """Returns where the resource stands in the store."""
    return unwrap(resource).metadata.record
