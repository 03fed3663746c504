"""What the names that programs dial stand for: `orders` is `platform/orders` to whom the mesh resolves it so."""

from typing import Final

from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.xds import api
from meshwarden.xds.external_name import service_of
from meshwarden.xds.snapshot import Resource, Snapshot

_LISTENER: Final = "envoy.config.listener.v3.Listener"
_MANAGER: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_SCHEME: Final = "xds:///"
_SERVER: Final = "grpc/server?"


class Names:
    """The services that a tenant's workloads on this node see, by the listeners that they are given."""

    def __init__(self, registry: Registry, scopes: ScopeStore) -> None:
        self._registry = registry
        self._scopes = scopes
        self._known: dict[str, tuple[Snapshot, dict[str, str]]] = {}
        self._outside: dict[str, tuple[Snapshot, frozenset[str]]] = {}

    def find(self, tenant: str, said: str) -> str | None:
        """The service that a tenant's workload calls by a name.

        Args:
            tenant: the caller's.
            said: `orders`, `orders.platform`, `xds:///orders`, or `platform/orders` in full.

        Returns:
            `<tenant>/<service>`; None if it sees no such service: it has made the name up, or the service is gone.
        """
        name = said.removeprefix(_SCHEME)
        owner, slash, service = name.partition("/")
        names = self._names(tenant)
        found = names.get(f"{service}.{owner}" if slash else name)
        # Envoys alone call those, and tell of them in full.
        return found or (name if slash and name in self._externals(tenant) else None)

    def _externals(self, tenant: str) -> frozenset[str]:
        """The external services that a tenant's Envoys on this node are given."""
        for workload in self._registry.workloads.values():
            if workload.spiffe_id.tenant != tenant or not workload.has_envoy:
                continue
            snapshot = self._scopes.snapshot(f"{workload.id}/envoy")
            if snapshot is None:
                continue
            known = self._outside.get(tenant)
            if known is None or known[0] is not snapshot:
                found = frozenset(map(service_of, snapshot.named(api.LISTENER))) - {""}
                known = self._outside[tenant] = (snapshot, found)
            return known[1]
        return self._outside[tenant][1] if tenant in self._outside else frozenset()

    def _names(self, tenant: str) -> dict[str, str]:
        for workload in self._registry.workloads.values():
            if workload.spiffe_id.tenant != tenant:
                continue
            snapshot = self._scopes.snapshot(f"{workload.id}/grpc")
            if snapshot is None:
                continue
            known = self._known.get(tenant)
            if known is None or known[0] is not snapshot:
                known = self._known[tenant] = (snapshot, _names_in(snapshot))
            return known[1]
        # The last of its workloads has gone; its last counts may still come in.
        known = self._known.get(tenant)
        return {} if known is None else known[1]


def _names_in(snapshot: Snapshot) -> dict[str, str]:
    found = {}
    for name, item in snapshot.named(api.LISTENER).items():
        if not name.startswith(_SERVER) and (service := _service_of(item)):
            found[name] = service
    return found


def _service_of(item: Resource) -> str:
    try:
        listener = api.parse(_LISTENER, item.body)
        manager = api.parse(_MANAGER, listener.api_listener.api_listener.value)  # type: ignore[attr-defined]
    except api.ApiError:
        return ""
    service, dot, tenant = manager.rds.route_config_name.partition(".")  # type: ignore[attr-defined]
    return f"{tenant}/{service}" if dot and service and tenant else ""
