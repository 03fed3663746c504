"""Messages of any kind, made up from their descriptors: some that a caller might send, some that an attacker would."""

import functools
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import new_key

DEPTH: Final = 5
# What there is in a mesh of the tests, so that much is found.
NAMES: Final = ("acme", "globex", "web", "orders", "n1", "ann", "eu")
TEXTS: Final = (
    *NAMES,
    "spiffe://mesh.test/tenant/acme/service/web",
    "spiffe://mesh.test/tenant/globex/service/web",
    "spiffe://mesh.test/region/eu/node/n1",
    "spiffe://other.test/x",
    "acme/web",
    "00:1F",
    "127.0.0.1:1",
    "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    "a" * 32,
    "eyJhbGciOiJub25lIn0.e30.",
)
HOSTILE: Final = (
    "",
    "*",
    "..",
    "../globex",
    "acme/../globex",
    "acme\0",
    "acme\n",
    "Acme",
    "a%2e%2e",
    "globex/",
    "%",
    "_",
    "' OR 1=1 --",
    "\u0661\u202e\ufeff",
    "\U0001f600",
    "-1",
    "1e999",
    "x" * 64,
    "x" * 5000,
)
CSRS: Final = (make_csr(new_key()), make_csr(new_key()))
# {field: what it says mostly}: else hardly anything would come as far as a handler.
USUAL: Final[dict[str, tuple[Any, ...]]] = {
    "tenant": ("acme", "acme", "globex", ""),
    "name": NAMES,
    "entry": ("web",),
    "node": ("n1",),
    "nodes": ("n1",),
    "service": ("web", "orders"),
    "join_token": ("a" * 32,),
    "kind": (
        "Tenant",
        "Service",
        "WorkloadEntry",
        "AccessPolicy",
        "RoutePolicy",
        "RatePolicy",
        "Slo",
        "TrustDomain",
        "Drain",
        "Ingress",
        "Rollout",
    ),
    "spiffe_id": ("spiffe://mesh.test/tenant/globex/service/web",),
    "audience": ("orders",),
    "csr": CSRS,
}
_INT: Final = FieldDescriptor
_BOUNDS: Final = {
    _INT.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    _INT.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    _INT.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    _INT.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}

texts = st.sampled_from(TEXTS) | st.sampled_from(NAMES) | st.sampled_from(HOSTILE) | st.text(max_size=20)
contents = st.sampled_from(CSRS) | st.sampled_from([b"", b"\0" * 32, b"\x30" * 9000]) | st.binary(max_size=64)


def message_of(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a type; what the schema forbids is among them."""
    return _messages(descriptor, DEPTH)


@functools.cache
def _messages(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Message]:
    fields = [field for field in descriptor.fields if depth or field.message_type is None]
    make = functools.partial(_make, descriptor)
    choices: dict[str, st.SearchStrategy[Any]] = {}
    for field in fields:
        oneof = field.containing_oneof
        if oneof is None:
            # Mostly there: what lacks something is refused before anything is looked at.
            choices[field.name] = _field(field, depth) | _field(field, depth) | st.none()
        elif oneof.name not in choices:
            choices[oneof.name] = st.sampled_from([each for each in oneof.fields if each in fields]).flatmap(
                lambda each: st.tuples(st.just(each.name), _field(each, depth))
            )
    return st.fixed_dictionaries(choices).map(make)


def _make(descriptor: Descriptor, values: dict[str, Any]) -> Message:
    message = GetMessageClass(descriptor)()
    for name, value in values.items():
        if name in descriptor.oneofs_by_name and isinstance(value, tuple):
            name, value = value
        if value is None:
            continue
        field = descriptor.fields_by_name[name]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill(getattr(message, name), value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type is not None:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _fill(mapping: Any, value: list[Message]) -> None:
    for entry in value:
        one: Any = entry
        if hasattr(one.value, "DESCRIPTOR"):
            mapping[one.key].CopyFrom(one.value)
        else:
            mapping[one.key] = one.value


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    single = st.deferred(lambda: _messages(field.message_type, depth - 1)) if field.message_type else _scalar(field)
    return st.lists(single, max_size=3) if field.is_repeated else single


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _BOUNDS:
        low, high = _BOUNDS[kind]
        return st.integers(0, 5) | st.sampled_from([low, high, 0, 1]) | st.integers(low, high)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from(known) | st.sampled_from([*known, -1, 99])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats(width=32)
    anything = contents if field.type == FieldDescriptor.TYPE_BYTES else texts
    if field.name not in USUAL or (field.name == "csr") != (field.type == FieldDescriptor.TYPE_BYTES):
        return anything
    usual = st.sampled_from(USUAL[field.name])
    return usual | usual | anything


def corrupt(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a message, mostly as they are, else cut or with others in them."""
    changes: list[Callable[[int, int], bytes]] = [
        lambda at, _: data[:at],
        lambda at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
        lambda at, byte: data[:at] + bytes([byte]) * 8 + data[at:],
    ]
    changed = st.builds(
        lambda change, at, byte: change(at, byte),
        st.sampled_from(changes),
        st.integers(0, len(data)),
        st.integers(0, 255),
    )
    return st.just(data) | st.just(data) | st.just(data) | changed
