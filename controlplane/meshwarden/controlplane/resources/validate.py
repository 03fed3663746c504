"""What a message must hold by itself: the schema's rules, and what they can't say.

The rules stand in the schema (`schema.binpb`, with the comments); the stubs are without them. So a message is read
anew as the class of a pool of our own, and protovalidate holds it against that.
"""

import functools
import importlib.resources
import re
from collections.abc import Iterator
from typing import Any

import protovalidate
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from meshwarden.certs.bundle import InvalidBundle
from meshwarden.certs.bundle_document import parse_document
from meshwarden.controlplane.resources.access import access_faults
from meshwarden.controlplane.resources.batch import keeps_rules
from meshwarden.controlplane.resources.choice import choice_faults
from meshwarden.controlplane.resources.external import external_faults
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.foreign import foreign_faults
from meshwarden.controlplane.resources.ingress import entry_faults, ingress_faults
from meshwarden.controlplane.resources.model import AnyResource, unwrap
from meshwarden.controlplane.resources.rate import rate_faults
from meshwarden.controlplane.resources.rollout import rollout_faults
from meshwarden.controlplane.resources.times import time_faults
from meshwarden.controlplane.resources.traffic import route_faults
from meshwarden.v1.report_pb2 import ExportRequest
from meshwarden.v1.resources_pb2 import (
    AccessPolicy,
    Endpoint,
    ExternalService,
    Ingress,
    RatePolicy,
    Resource,
    Rollout,
    RoutePolicy,
    Service,
    Tenant,
    TrustDomain,
    WorkloadEntry,
)

RESOURCE = "meshwarden.v1.Resource"
SMALL_BYTES = 64
LABEL = "lower-case letters, digits and hyphens, with a letter or digit at both ends"
# What a pattern of the schema means, for people.
PATTERNS = {
    "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$": f"must be {LABEL}",
    "^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$": f"must be {LABEL}",
    "^(\\*|[a-z0-9]([a-z0-9-]*[a-z0-9])?)$": f'must be "*" or {LABEL}',
    "^(\\*|[a-z0-9]([a-z0-9-]*[a-z0-9])?)?$": f'must be "*" or {LABEL}',
    "^(CANCELLED|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|[45][0-9][0-9])$": (
        "must be CANCELLED, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED or UNAVAILABLE, or from 400 to 599"
    ),
    "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$": "must be lower-case letters, digits, dots and hyphens",
    "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$": "must be lower-case letters, digits, dots and hyphens",
    "^([A-Z]+ )?/[^*?\\s]*\\*?$": (
        'must be "/package.Service/Method", "/path" or "GET /path", without a query; only its end may be "*"'
    ),
    "^([0-9a-f]{64})?$": "must be 64 lower-case hexadecimal digits",
    "^(/.*)?$": 'must start with "/"',
    "^([A-Za-z_][A-Za-z0-9_.@\\\\-]*)?$": "must be the name of a user, which is no number",
    "^([A-Za-z0-9:_.\\\\@-]+\\.(service|scope))?$": 'must be the whole name of a unit, "NAME.service" or "NAME.scope"',
    "^(/[A-Za-z0-9_][A-Za-z0-9:_.\\\\@-]*)*$": 'must be a path from the root as in /proc/PID/cgroup, "/a/b"',
    "^[a-z0-9.:-]+$": "must be an IP address, or a name of DNS in lower case",
    "^[a-z0-9._-]*$": "must be lower-case letters, digits, dots, hyphens and underscores",
    "^[a-z0-9._-]+$": "must be lower-case letters, digits, dots, hyphens and underscores",
    '^https://([A-Za-z0-9.-]+|\\[[0-9a-fA-F:.]+\\])(:[0-9]{1,5})?(/[!-"$-~]*)?$': (
        'must be "https://host:port/path", without user and fragment'
    ),
    "^(spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+)?$": 'must be a SPIFFE ID with a path, "spiffe://partner.example/spire/server"',
    "^([a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9-]*[a-z0-9])?)?$": 'must be "tenant/service"',
    "^([a-z0-9]([a-z0-9-]*[a-z0-9])?/)?[a-z0-9]([a-z0-9-]*[a-z0-9])?$": 'must be "service" or "tenant/service"',
    "^([0-9.]+|\\[[0-9a-fA-F:.]+\\]):[0-9]{1,5}$": 'must be an IP address and a port, "0.0.0.0:8443" or "[::]:8443"',
    "^(/[A-Za-z0-9_@.:+-]+)+$": "must be an absolute path of letters, digits and _@.:+-",
    "^[A-Za-z][A-Za-z0-9+.-]*:[!-+.-~-]+$": "must be a URI without commas",
    "^(\\*\\.)?[A-Za-z0-9_][A-Za-z0-9_-]*(\\.[A-Za-z0-9_][A-Za-z0-9_-]*)*$": "must be a DNS name",
    '^[!"$-~]([ -~]*[!-~])?$': 'must be printable ASCII, without a space at either end and "#" at its beginning',
    "^[!-~]+$": "must be printable ASCII without spaces",
    "^(\\*|(\\*\\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)$": (
        'must be a host in lower case, "shop.example.com", "*.example.com" or "*", without a port'
    ),
    "^(/[A-Za-z0-9_.~!$&'()*+,;=:@-]*)+$": 'must be a path that starts with "/", without escapes and query',
    "^(/|(/[A-Za-z0-9_.~!$&'()*+,;=:@-]+)+)$": (
        'must be "/", or whole segments of a path, "/orders", without escapes, query and "/" at the end'
    ),
    "^([a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9-]*[a-z0-9])?|spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+)$": (
        'must be "tenant/service", or a SPIFFE ID with a path'
    ),
    "^[a-z0-9!#$%&'*+.^_`|~-]+$": "must be the name of a header, in lower case",
    "^([!-~]([ -~]*[!-~])?)?$": "must be printable ASCII, without a space at either end",
    "^[A-Za-z0-9_-]+$": "must be letters, digits, hyphens and underscores",
    "^(/[A-Za-z0-9_.~/-]*)?$": 'must be a path that starts with "/"',
    "^/[^*?\\s]+$": 'must be "/package.Service/Method"',
    "^(/[^*?\\s]+)?$": 'must be "/package.Service/Method"',
    "^(([01][0-9]|2[0-3]):[0-5][0-9])?$": 'must be a time of day, "09:00"',
    "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)?$": 'must be a time of day, "18:00", up to "24:00"',
}

_ONE_OF = "exactly one field is required in oneof"
_COUNT = re.compile(r"(\d+) (\w+)\(s\)")


class Schema:
    """The schema with its rules and comments."""

    def __init__(self) -> None:
        data = importlib.resources.files("meshwarden.v1").joinpath("schema.binpb").read_bytes()
        self.files = descriptor_pb2.FileDescriptorSet.FromString(data)
        self.pool = descriptor_pool.DescriptorPool()
        for file in self.files.file:
            self.pool.Add(file)
        self._validator = protovalidate.Validator()
        self._classes: dict[str, type[Message]] = {}

    def knows(self, full_name: str) -> bool:
        """Whether a message is one of ours."""
        return full_name.startswith("meshwarden.v1.")

    def violations(self, full_name: str, data: bytes) -> list[Any]:
        """Returns protovalidate's violations in a serialised message, with paths in the schema's names."""
        if full_name not in self._classes:
            self._classes[full_name] = message_factory.GetMessageClass(self.pool.FindMessageTypeByName(full_name))
        return self._validator.collect_violations(self._classes[full_name].FromString(data))


@functools.cache
def schema() -> Schema:
    """Loads the schema once: 10 ms."""
    return Schema()


def rule_faults(message: Message, size_bytes: int | None = None) -> list[FieldFault]:
    """Holds any message against the schema's rules; the first fault of each field, times first, else in its order.

    Args:
        message: the message.
        size_bytes: how large it was when it was read, where that is known: it may spare a look at its parts.
    """
    if not schema().knows(message.DESCRIPTOR.full_name):
        return []
    if isinstance(message, ExportRequest):  # counts whose minute can't be are refused, and nothing else of a batch
        return [] if keeps_rules(message, _holds, size_bytes) else list(_faults_of(message))
    found = {fault.field: fault for fault in time_faults(message, RESOURCE)}
    found |= {fault.field: fault for fault in _faults_of(message)}
    return list(found.values())


def unknown_faults(resource: Resource) -> list[FieldFault]:
    """Names what holds fields that this schema does not have: a newer client means something by them."""
    known = Resource()
    known.CopyFrom(resource)
    known.DiscardUnknownFields()
    if known.ByteSize() == resource.ByteSize():
        return []
    return list(_unknown(unwrap(resource), ""))


def _unknown(message: Any, path: str) -> Iterator[FieldFault]:
    fields: Any = UnknownFieldSet(message)  # iterable, which its stubs do not know
    if numbers := sorted({field.field_number for field in fields}):
        text = f"unknown field {', '.join(map(str, numbers))}: this control plane is older than what you call it with"
        yield FieldFault(path, text)
    for field, value in message.ListFields():
        place = f"{path}.{field.json_name}" if path else field.json_name
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue  # of our maps none holds messages
        if not field.is_repeated:
            yield from _unknown(value, place)
            continue
        for number, item in enumerate(value):
            yield from _unknown(item, f"{place}[{number}]")


def _faults(descriptor: Any, data: bytes) -> tuple[FieldFault, ...]:
    found: dict[str, FieldFault] = {}
    for violation in schema().violations(descriptor.full_name, data):
        field = violation.proto.field  # None: it is about the message as a whole
        elements, text = list(field.elements) if field is not None else [], _text(violation)
        if text == _ONE_OF and elements:
            text = f"is required: give one of {', '.join(_choices(descriptor, elements))}"
            elements = elements[:-1] or elements  # without the union's own name, which no manifest has
        path = _path(descriptor, elements)
        found.setdefault(path, FieldFault(path, text))
    return tuple(found.values())


# Heartbeats are all alike, and so are a thousand agents' acknowledgements of one revision.
_small_faults = functools.lru_cache(4096)(_faults)


def _faults_of(message: Message) -> tuple[FieldFault, ...]:
    data = message.SerializeToString()
    return (_small_faults if len(data) <= SMALL_BYTES else _faults)(message.DESCRIPTOR, data)


def _holds(message: Message) -> bool:
    return not _faults_of(message)


def resource_faults(resource: Resource) -> list[FieldFault]:
    """What a resource must hold by itself and the schema can't say; for one that keeps the schema's rules."""
    return list(_own_faults(unwrap(resource)))


def _path(descriptor: Any, elements: Any) -> str:
    """The path in JSON names. The union of the kinds is left out: manifests do not show it."""
    path = ""
    for element in elements:
        within = descriptor.full_name if descriptor is not None else ""
        field = descriptor.fields_by_name.get(element.field_name) if descriptor is not None else None
        name = field.json_name if field is not None else element.field_name
        if within != RESOURCE:
            path += f".{name}" if path else name
        if element.subscript is not None:
            key = element.subscript.value
            path += f"[{key}]" if element.subscript.field == "index" else f'["{key}"]'
        descriptor = field.message_type if field is not None else None
    return path


def _choices(descriptor: Any, elements: Any) -> list[str]:
    """The fields, in JSON names, of the union that a path ends with."""
    *above, last = elements
    for element in above:
        descriptor = descriptor.fields_by_name[element.field_name].message_type
    return [field.json_name for field in descriptor.oneofs_by_name[last.field_name].fields]


def _text(violation: Any) -> str:
    """The violation for people, with the way to mend it."""
    rule, message = str(violation.proto.rule_id), str(violation.proto.message)
    if rule == "string.pattern":
        pattern = message.partition("`")[2].rpartition("`")[0]
        return PATTERNS.get(pattern, message)
    # The schema's enums forbid no value but UNSPECIFIED.
    if rule == "enum.not_in" or message in ("", "value is required", "must be at least 1 characters"):
        message = "is required"
    elif message == "must contain at least 1 item(s)":
        message = "is required: give at least one"
    message = _COUNT.sub(lambda found: f"{found[1]} {found[2]}{'' if found[1] == '1' else 's'}", message)
    return f"the key {message}" if violation.proto.for_key else message


def _own_faults(resource: AnyResource) -> Iterator[FieldFault]:
    if isinstance(resource, Tenant):
        if resource.metadata.tenant not in ("", resource.metadata.name):
            yield FieldFault("metadata.tenant", "a Tenant is owned by itself: leave it out")
    elif not resource.metadata.tenant:
        yield FieldFault("metadata.tenant", "is required")
    if isinstance(resource, RoutePolicy):
        yield from route_faults(resource)
        yield from (FieldFault(*fault) for fault in choice_faults(resource.spec))
    elif isinstance(resource, RatePolicy):
        yield from (FieldFault(*fault) for fault in rate_faults(resource.spec))
    elif isinstance(resource, WorkloadEntry):
        if resource.spec.inbound_port and resource.spec.data_plane != resource.spec.ENVOY:
            yield FieldFault("spec.inboundPort", "only an entry with dataPlane ENVOY has one")
        elif resource.spec.inbound_port and resource.spec.inbound_port == resource.spec.port:
            yield FieldFault("spec.inboundPort", "is the program's own port; the Envoy needs another")
        yield from entry_faults(resource)
    elif isinstance(resource, Ingress):
        yield from ingress_faults(resource)
    elif isinstance(resource, TrustDomain):
        yield from _trust_faults(resource)
    elif isinstance(resource, AccessPolicy):
        yield from access_faults(resource.spec)
        yield from foreign_faults(resource)
    elif isinstance(resource, Service):
        yield from foreign_faults(resource)
        if resource.spec.spiffe_id and resource.spec.HasField("permissive"):
            yield FieldFault("spec.permissive", "another trust domain serves it: how it is called is for that to say")
    elif isinstance(resource, ExternalService):
        yield from external_faults(resource.spec)
    elif isinstance(resource, Rollout):
        yield from rollout_faults(resource, _own_faults)
    elif isinstance(resource, Endpoint) and resource.spec.node:
        yield FieldFault("spec.node", "endpoints of a node are its agent's to keep: leave it out")


def _trust_faults(resource: TrustDomain) -> Iterator[FieldFault]:
    spec = resource.spec
    if spec.bundle:
        try:
            parse_document(spec.trust_domain, spec.bundle.encode())
        except InvalidBundle as error:
            yield FieldFault("spec.bundle", str(error))
    elif spec.bundle_endpoint.spiffe_id.startswith(f"spiffe://{spec.trust_domain}/"):
        yield FieldFault("spec.bundle", "is required: it proves the server, which is of the trust domain itself")
