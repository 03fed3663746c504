"""The reference of `effect`: our xDS server with hand-made snapshots, and no control plane behind it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc.aio

from meshwarden.xds import api
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.server import add_ads
from meshwarden.xds.snapshot import Resource, Snapshot, resource

TYPE = "type.googleapis.com/"
RBAC = TYPE + "envoy.extensions.filters.http.rbac.v3.RBAC"
HCM = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
ADS = {"ads": {}, "resource_api_version": "V3"}


class Source:
    """One snapshot for every stream."""

    def __init__(self) -> None:
        self.now: Snapshot | None = None
        self._clients: set[_Client] = set()

    async def open(self, _: object, node: object) -> "_Client":
        """The client of a new stream."""
        client = _Client(self)
        self._clients.add(client)
        return client

    def put(self, *resources: Resource) -> None:
        """Replaces the snapshot."""
        self.now = Snapshot.of(resources)
        for client in self._clients:
            client.wake.set()

    def leave(self, client: "_Client") -> None:
        """A stream has ended."""
        self._clients.discard(client)


class _Client:
    def __init__(self, source: Source) -> None:
        self._source, self.wake = source, asyncio.Event()

    def snapshot(self) -> Snapshot | None:
        return self._source.now

    async def changed(self, after: Snapshot | None) -> Snapshot:
        while (now := self._source.now) is after or now is None:
            self.wake.clear()
            await self.wake.wait()
        return now

    def acked(self, type_url: str, version: str) -> None:
        """The client took a push."""

    async def admit(self) -> None:
        """At once."""

    def charge(self) -> AbstractContextManager[object]:
        return nullcontext()

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            raise ValueError(f"the bare configuration is refused: {refusal.type_url}: {refusal.message}")

    def settled(self, snapshot: Snapshot) -> None:
        """The client has all of a snapshot."""

    def close(self) -> None:
        self._source.leave(self)


@asynccontextmanager
async def bare_xds(path: Path) -> AsyncIterator[Source]:
    """Serves xDS on a Unix socket for the length of the block."""
    source, server = Source(), grpc.aio.server()
    add_ads(server, source)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield source
    finally:
        await server.stop(0)


def grpc_server(address: str, is_allowed: bool) -> list[Resource]:
    """What one gRPC server needs: a listener that denies, and a route that allows or does not."""
    host, _, port = address.rpartition(":")
    name = f"grpc/server?xds.resource.listening_address={address}"
    filters = [{"name": "rbac", "typed_config": _rbac(False)}, ROUTER]
    manager = {"@type": HCM, "rds": {"config_source": ADS, "route_config_name": "bare"}, "http_filters": filters}
    listener = {
        "name": name,
        "address": {"socket_address": {"address": host, "port_value": int(port)}},
        "filter_chains": [{"name": "bare", "filters": [{"name": "http", "typed_config": manager}]}],
    }
    override = {"@type": RBAC + "PerRoute", "rbac": {"rules": _rules(is_allowed)}}
    way = {"match": {"prefix": ""}, "non_forwarding_action": {}, "typed_per_filter_config": {"rbac": override}}
    routes = {"name": "bare", "virtual_hosts": [{"name": "bare", "domains": ["*"], "routes": [way]}]}
    return [
        _built("envoy.config.listener.v3.Listener", name, listener),
        _built("envoy.config.route.v3.RouteConfiguration", "bare", routes),
    ]


def envoy(path: Path, is_allowed: bool) -> list[Resource]:
    """What one Envoy needs: a listener that answers 200 by itself, behind access control that comes apart from it."""
    access = {"name": "access", "config_discovery": {"config_source": ADS, "type_urls": [RBAC]}}
    way = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = {
        "@type": HCM,
        "stat_prefix": "bare",
        "route_config": {"virtual_hosts": [{"name": "bare", "domains": ["*"], "routes": [way]}]},
        "http_filters": [access, ROUTER],
    }
    listener = {
        "name": "bare",
        "address": {"pipe": {"path": str(path), "mode": 0o600}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    extension = {"name": "access", "typed_config": _rbac(is_allowed)}
    return [
        _built("envoy.config.listener.v3.Listener", "bare", listener),
        _built("envoy.config.core.v3.TypedExtensionConfig", "access", extension),
    ]


def _rbac(is_allowed: bool) -> dict[str, Any]:
    return {"@type": RBAC, "rules": _rules(is_allowed)}


def _rules(is_allowed: bool) -> dict[str, Any]:
    everyone = {"permissions": [{"any": True}], "principals": [{"any": True}]}
    return {"action": "ALLOW", "policies": {"everyone": everyone} if is_allowed else {}}


def _built(kind: str, name: str, fields: dict[str, Any]) -> Resource:
    return resource(api.build(kind, fields), name)
