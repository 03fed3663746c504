"""The clients' sides of both variants, and resources, for the tests of the state machines."""

from meshwarden.xds import api
from meshwarden.xds.delta import DeltaStream
from meshwarden.xds.snapshot import Resource, Snapshot, resource
from meshwarden.xds.sotw import SotwStream
from meshwarden.xds.stream import Bounds

DISCOVERY = "envoy.service.discovery.v3."
NAME_FIELD = {api.ENDPOINT: "cluster_name"}


def item(type_url: str, name: str, note: int = 0) -> Resource:
    """A resource whose bytes differ with `note`."""
    fields: dict[str, object] = {NAME_FIELD.get(type_url, "name"): name}
    if type_url == api.CLUSTER:
        fields |= {"type": "EDS", "eds_cluster_config": {"service_name": name}, "connect_timeout": f"{note + 1}s"}
    elif type_url == api.ENDPOINT:
        fields["policy"] = {"overprovisioning_factor": note + 1}
    elif type_url == api.ROUTE:
        fields["max_direct_response_body_size_bytes"] = note
    else:
        fields["stat_prefix"] = str(note)
    return resource(api.build(type_url.rpartition("/")[2], fields), name)


def snapshot(*items: Resource) -> Snapshot:
    return Snapshot.of(items)


class Sotw:
    """A client's side of the state-of-the-world variant."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.machine = SotwStream(bounds)

    def ask(self, type_url: str, *names: str, nonce: str = "", error: str | None = None):
        fields: dict[str, object] = {"type_url": type_url, "resource_names": names, "response_nonce": nonce}
        if error is not None:
            fields["error_detail"] = {"code": 3, "message": error}
        return self.machine.request(api.build(DISCOVERY + "DiscoveryRequest", fields))

    def next(self, snap: Snapshot):
        """The next response as (type, names, nonce), or None."""
        wanted = self.machine.wanted(snap)
        if not wanted:
            return None
        push = self.machine.push(wanted[0], snap)
        response = api.parse(DISCOVERY + "DiscoveryResponse", push.payload)
        assert (response.nonce, response.type_url, response.version_info) == (push.nonce, wanted[0], push.version)
        got = [api.unpack(body) for body in response.resources]
        names = {getattr(body, NAME_FIELD.get(wanted[0], "name")) for body in got}
        return wanted[0], names, push.nonce


class Delta:
    """A client's side of the incremental variant."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.machine = DeltaStream(bounds)

    def ask(self, type_url: str, *names: str, drop=(), nonce: str = "", error: str | None = None, held=None):
        fields: dict[str, object] = {
            "type_url": type_url,
            "resource_names_subscribe": names,
            "resource_names_unsubscribe": list(drop),
            "response_nonce": nonce,
            "initial_resource_versions": held or {},
        }
        if error is not None:
            fields["error_detail"] = {"code": 3, "message": error}
        return self.machine.request(api.build(DISCOVERY + "DeltaDiscoveryRequest", fields))

    def next(self, snap: Snapshot):
        """The next response as (type, names, removed names, nonce), or None."""
        wanted = self.machine.wanted(snap)
        if not wanted:
            return None
        push = self.machine.push(wanted[0], snap)
        response = api.parse(DISCOVERY + "DeltaDiscoveryResponse", push.payload)
        assert (response.nonce, response.type_url) == (push.nonce, wanted[0])
        return wanted[0], {body.name for body in response.resources}, set(response.removed_resources), push.nonce


L, R, C, E = api.LISTENER, api.ROUTE, api.CLUSTER, api.ENDPOINT
