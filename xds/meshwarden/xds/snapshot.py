"""What a client of the xDS server is to have: resources, serialised once, in immutable snapshots.

A `Resource` carries the bytes that go on the wire, for both variants of the protocol, so that a thousand streams that
get the same cluster share one serialisation of it.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf.message import Message

from meshwarden.xds import api
from meshwarden.xds.wire import delimited, digest_of

_NOTHING: Mapping[str, "Resource"] = MappingProxyType({})


@dataclass(frozen=True)
class Resource:
    """One named resource.

    Attributes:
        type_url: `type.googleapis.com/…` of the message.
        name: its name within the type.
        version: opaque; equal versions mean equal bytes.
        body: the serialised message.
    """

    type_url: str
    name: str
    version: str
    body: bytes

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that it is."""
        return digest_of((self.type_url.encode(), self.name.encode(), self.version.encode(), self.body))

    @functools.cached_property
    def any_bytes(self) -> bytes:
        """The resource as a serialised `google.protobuf.Any`."""
        return delimited(1, self.type_url.encode()) + delimited(2, self.body)

    @functools.cached_property
    def sotw_entry(self) -> bytes:
        """The resource as one entry of `DiscoveryResponse.resources`."""
        return delimited(2, self.any_bytes)

    @functools.cached_property
    def delta_entry(self) -> bytes:
        """The resource as one entry of `DeltaDiscoveryResponse.resources`."""
        named = delimited(3, self.name.encode()) + delimited(1, self.version.encode())
        return delimited(2, named + delimited(2, self.any_bytes))

    @functools.cached_property
    def endpoint_name(self) -> str | None:
        """The name under which a cluster asks for its endpoints; None for what is no EDS cluster."""
        if self.type_url != api.CLUSTER:
            return None
        cluster = api.parse("envoy.config.cluster.v3.Cluster", self.body)
        if not cluster.HasField("eds_cluster_config"):
            return None
        return cluster.eds_cluster_config.service_name or self.name  # type: ignore[attr-defined]


def resource(message: Message, name: str) -> Resource:
    """A resource of `message`: deterministic bytes, and a digest of them as version."""
    body = message.SerializeToString(deterministic=True)
    return Resource(api.type_url(message), name, hashlib.sha256(body).hexdigest()[:16], body)


class Snapshot:
    """An immutable set of resources: `{type_url: {name: Resource}}`.

    `version` names the whole (a revision, say) and is what a client of the state-of-the-world variant reports back;
    without one each type's version is a digest of its resources.
    """

    __slots__ = ("__weakref__", "_derived", "resources", "version_info")

    def __init__(self, resources: Mapping[str, Mapping[str, Resource]], version: str = "") -> None:
        self.resources: Mapping[str, Mapping[str, Resource]] = MappingProxyType(
            {type_url: MappingProxyType(dict(named)) for type_url, named in resources.items()}
        )
        self.version_info = version
        self._derived: dict[str, str] = {}

    @classmethod
    def of(cls, resources: Iterable[Resource], version: str = "", before: "Snapshot | None" = None) -> "Snapshot":
        """A snapshot of loose resources; of two with one type and name the later stands.

        A type of which nothing differs from `before` is the same object, so that streams see at once that there is
        nothing new in it.
        """
        by_type: dict[str, dict[str, Resource]] = {}
        for item in resources:
            by_type.setdefault(item.type_url, {})[item.name] = item
        made = cls(by_type, version)
        if before is not None:
            known = before.resources
            kept = {url: known[url] if known.get(url) == named else named for url, named in made.resources.items()}
            made.resources = MappingProxyType(kept)
        return made

    def named(self, type_url: str) -> Mapping[str, Resource]:
        """The resources of a type: `{name: Resource}`, empty if there are none."""
        return self.resources.get(type_url, _NOTHING)

    def version(self, type_url: str) -> str:
        """The version of a type's resources in this snapshot."""
        if self.version_info:
            return self.version_info
        derived = self._derived.get(type_url)
        if derived is None:
            digest = hashlib.sha256()
            for name, item in sorted(self.named(type_url).items()):
                digest.update(f"{len(name)}:{name}{len(item.version)}:{item.version}".encode())
            derived = self._derived[type_url] = digest.hexdigest()[:16]
        return derived

    def __repr__(self) -> str:
        counts = ", ".join(f"{url.rpartition('.')[2]}: {len(named)}" for url, named in self.resources.items())
        return f"Snapshot({self.version_info!r}, {{{counts}}})"
