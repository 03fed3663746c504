"""Who reports, written into the resource of what it reports, whatever it says of that itself."""

from typing import Any, Final

from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.agents.telemetry.attribute import bound_resource
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.spiffe_id import SpiffeId

_OURS: Final = "mesh."
_NAME: Final = "service.name"
_MAX_KNOWN: Final = 256
# Larger ones are read each time: nobody's take up the agent's memory.
_KNOWN_BYTES: Final = 2048

# The workload, and what it says of itself: resources, then schema URLs.
_Said = tuple[str, SpiffeId, tuple[bytes, ...], tuple[bytes, ...]]


def name_of(identity: SpiffeId) -> str:
    """What is written as `service.name` into what a workload reports."""
    return f"{identity.service}.{identity.tenant}"


class Stamp:
    """Stamps what workloads of this node report."""

    def __init__(self, place: NodePlace) -> None:
        """Takes the place of this node."""
        self._place = place
        # A program says the same of itself each time.
        self._known: dict[_Said, bytes] = {}

    def put(self, resource: Resource, workload: Workload) -> None:
        """Writes into a resource whose it is."""
        identity = workload.spiffe_id
        ours = {
            _NAME: name_of(identity),
            "mesh.tenant": identity.tenant or "",
            "mesh.service": identity.service or "",
            "mesh.workload": workload.id,
            "mesh.node": self._place.node,
            "mesh.region": self._place.region,
        }
        kept = [pair for pair in resource.attributes if pair.key != _NAME and not pair.key.startswith(_OURS)]
        stamped = [
            common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value)) for key, value in ours.items()
        ]
        resource.CopyFrom(Resource(attributes=[*kept, *stamped]))

    def head(self, opened: Any, workload: Workload) -> bytes:
        """What `ResourceSpans` say of their resource, bounded and stamped, serialised.

        Args:
            opened: the message, as `wire` has it; protobuf can read it.
            workload: whose it is.
        """
        resources, urls = tuple(opened.resource[:]), tuple(opened.schema_url[:])
        said = (workload.id, workload.spiffe_id, resources, urls)
        known = self._known.get(said)
        if known is not None:
            return known
        about = ResourceSpans(resource=Resource.FromString(b"".join(resources)))
        for url in urls:
            about.schema_url = url.decode()
        bound_resource(about)
        self.put(about.resource, workload)
        found = about.SerializeToString()
        if sum(map(len, (*resources, *urls))) <= _KNOWN_BYTES:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[said] = found
        return found
