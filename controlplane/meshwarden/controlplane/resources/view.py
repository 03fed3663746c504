"""Resources by kind, tenant and name: what references are held against."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence

from meshwarden.controlplane.resources.model import AnyResource, ref_of, unwrap
from meshwarden.controlplane.resources.reach import Width, covers, width
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import (
    Drain,
    ExternalService,
    RatePolicy,
    Resource,
    Rollout,
    Service,
    Tenant,
    TrustDomain,
    WorkloadEntry,
)

Names = dict[str, AnyResource]
# Each look for a name that is close goes through all names: a hundred in the life of a view.
MAX_HINTS = 100


class View:
    """A set of resources. Messages are shared, never changed."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Names]] = {}
        # Made when they are asked for, and forgotten by a change.
        self._by_service: dict[tuple[str, str], dict[str, list[AnyResource]]] = {}
        self._by_uid: dict[int, list[WorkloadEntry]] | None = None
        self._wide: list[RatePolicy] | None = None
        self._hints = MAX_HINTS
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
        self._forget(ref)
        self._kinds.setdefault(ref.kind, {}).setdefault(ref.tenant, {})[ref.name] = unwrap(resource)

    def remove(self, ref: ResourceRef) -> None:
        """Removes a resource; one that is not there is no fault."""
        self._forget(ref)
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

    def close_name(self, kind: str, tenant: str, name: str) -> str | None:
        """Returns the name of a kind in a tenant that is most like another one, if whoever asks may be told."""
        return self._close(name, self._kinds.get(kind, {}).get(tenant, {})) if self.sees(tenant) else None

    def close_tenant(self, name: str) -> str | None:
        """Returns the tenant whose name is most like another one, of those that whoever asks may be told."""
        return self._close(name, filter(self.sees, self._kinds.get("Tenant", {})))

    def of_service(self, kind: str, tenant: str, service: str) -> Sequence[AnyResource]:
        """Returns the resources of a kind that speak of a service."""
        index = self._by_service.get((kind, tenant))
        if index is None:
            index = self._by_service[kind, tenant] = {}
            for resource in self.of(kind, tenant):
                if not isinstance(resource, Tenant | Service | ExternalService | TrustDomain | Drain | Rollout):
                    index.setdefault(resource.spec.service, []).append(resource)
        return index.get(service, ())

    def rate_policies(self, tenant: str, service: str) -> Sequence[RatePolicy]:
        """Returns the rate policies that are about a service, the narrowest first, then in the order of their names."""
        if self._wide is None:
            self._wide = [one for one in self.of("RatePolicy") if isinstance(one, RatePolicy) and one.spec.services]
            self._wide.sort(key=_by_width)
        own = [one for one in self.of_service("RatePolicy", tenant, service) if isinstance(one, RatePolicy)]
        wide = [one for one in self._wide if covers(one.metadata.tenant, one.spec, (tenant, service))]
        return [*sorted(own, key=_by_width), *wide]

    def entries_of_uid(self, uid: int) -> Sequence[WorkloadEntry]:
        """Returns the workload entries of all tenants that want this uid."""
        if self._by_uid is None:
            self._by_uid = {}
            for entry in self.of("WorkloadEntry"):
                if isinstance(entry, WorkloadEntry) and entry.spec.selectors.HasField("uid"):
                    self._by_uid.setdefault(entry.spec.selectors.uid, []).append(entry)
        return self._by_uid.get(uid, ())

    def of(self, kind: str, tenant: str | None = None) -> Iterator[AnyResource]:
        """Yields the resources of a kind, of one tenant or of all."""
        tenants = self._kinds.get(kind, {})
        for names in tenants.values() if tenant is None else (tenants.get(tenant, {}),):
            yield from names.values()

    def __iter__(self) -> Iterator[AnyResource]:
        for kind in self._kinds:
            yield from self.of(kind)

    def service(self, tenant: str, name: str) -> Service | None:
        """Returns a service, or None."""
        found = self.find("Service", tenant, name)
        return found if isinstance(found, Service) else None

    def external(self, tenant: str, name: str) -> ExternalService | None:
        """Returns an external service, or None."""
        found = self.find("ExternalService", tenant, name)
        return found if isinstance(found, ExternalService) else None

    def _forget(self, ref: ResourceRef) -> None:
        self._by_service.pop((ref.kind, ref.tenant), None)
        if ref.kind == "WorkloadEntry":
            self._by_uid = None
        elif ref.kind == "RatePolicy":
            self._wide = None

    def _close(self, name: str, names: Iterable[str]) -> str | None:
        if not self._hints:
            return None
        self._hints -= 1
        return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _by_width(policy: RatePolicy) -> tuple[Width, str, str]:
    owner = policy.metadata.tenant
    return width(owner, policy.spec), owner, policy.metadata.name
