"""Resources by kind, tenant and name: what references are held against."""

from collections.abc import Callable, Iterable, Iterator

from meshwarden.controlplane.resources.model import AnyResource, ref_of, unwrap
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource, Service, WorkloadEntry

Names = dict[str, AnyResource]


class View:
    """A set of resources. Messages are shared, never changed."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Names]] = {}
        self.sees: Callable[[str], bool] = lambda tenant: True
        """Whether whoever asks may be told the names in a tenant."""

    def seen_by(self, sees: Callable[[str], bool]) -> "View":
        """Returns the same resources for one who may be told the names of some tenants only."""
        view = self.with_changes()
        view.sees = sees
        return view

    def put(self, resource: Resource) -> None:
        """Adds or replaces a resource."""
        ref = ref_of(resource)
        self._kinds.setdefault(ref.kind, {}).setdefault(ref.tenant, {})[ref.name] = unwrap(resource)

    def remove(self, ref: ResourceRef) -> None:
        """Removes a resource; one that is not there is no fault."""
        names = self._kinds.get(ref.kind, {}).get(ref.tenant, {})
        names.pop(ref.name, None)
        if not names:
            self._kinds.get(ref.kind, {}).pop(ref.tenant, None)

    def with_changes(self, puts: Iterable[Resource] = (), removes: Iterable[ResourceRef] = ()) -> "View":
        """Returns the view as it would be; this one stays as it is."""
        changed = View()
        changed.sees = self.sees
        changed._kinds = {kind: dict(tenants) for kind, tenants in self._kinds.items()}
        puts, removes = list(puts), list(removes)
        for kind, tenant in {(ref.kind, ref.tenant) for ref in (*map(ref_of, puts), *removes)}:
            tenants = changed._kinds.setdefault(kind, {})
            if tenant in tenants:
                tenants[tenant] = dict(tenants[tenant])
        for resource in puts:
            changed.put(resource)
        for ref in removes:
            changed.remove(ref)
        return changed

    def find(self, kind: str, tenant: str, name: str) -> AnyResource | None:
        """Returns a resource, or None."""
        return self._kinds.get(kind, {}).get(tenant, {}).get(name)

    def names(self, kind: str, tenant: str) -> list[str]:
        """Returns the names of a kind in a tenant."""
        return list(self._kinds.get(kind, {}).get(tenant, {}))

    def of(self, kind: str, tenant: str | None = None) -> Iterator[AnyResource]:
        """Yields the resources of a kind, of one tenant or of all."""
        tenants = self._kinds.get(kind, {})
        for names in tenants.values() if tenant is None else (tenants.get(tenant, {}),):
            yield from names.values()

    def __iter__(self) -> Iterator[AnyResource]:
        for kind in self._kinds:
            yield from self.of(kind)

    def tenants(self) -> list[str]:
        """Returns the names of the tenants."""
        return list(self._kinds.get("Tenant", {}))

    def service(self, tenant: str, name: str) -> Service | None:
        """Returns a service, or None."""
        found = self.find("Service", tenant, name)
        return found if isinstance(found, Service) else None

    def entries(self, tenant: str | None = None) -> Iterator[WorkloadEntry]:
        """Yields the workload entries, of one tenant or of all."""
        return (found for found in self.of("WorkloadEntry", tenant) if isinstance(found, WorkloadEntry))
