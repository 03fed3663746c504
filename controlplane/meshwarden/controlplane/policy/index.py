"""The resources of a mesh, and what is to be found of them without looking at all."""

from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any, Final

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.policy.denied import Denied
from meshwarden.controlplane.policy.drain import Drains, is_about
from meshwarden.controlplane.policy.mention import is_stream, led_to, nodes_named, prefers_near
from meshwarden.controlplane.policy.named import NamedCallers, named
from meshwarden.controlplane.policy.neutral import Foreign, Key, Name
from meshwarden.controlplane.resources.reach import Width, covers, width

CALLED: Final = ("Service", "ExternalService")
"""The kinds of what is called by a name."""


class Index:
    """All resources of a mesh, by what one looks for them."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.denied: frozenset[Denied] = frozenset()
        """Workloads and certificates that are revoked."""
        self.named: Final = NamedCallers()
        """The services that some route policy names as callers."""
        self.drains: Final = Drains()
        self._all: dict[Key, Any] = {}
        self.trust_domains: dict[Key, Any] = {}
        """The other trust domains: `{key: message}`."""
        self.foreign: tuple[str, ...] = ()
        """Their names, in order."""
        self.rollouts: dict[Key, Any] = {}
        """The rollouts, those that are over as well: `{key: message}`."""
        # {kind: {service: {key: message}}} for what speaks of a service.
        self._of_service: dict[str, dict[Name, dict[Key, Any]]] = {}
        # {kind: {node: keys}} for what names nodes.
        self._on_node: dict[str, dict[str, set[Key]]] = {"WorkloadEntry": {}, "Endpoint": {}}
        self._services: dict[str, set[Name]] = {}
        self._has_externals = False  # or ever had
        # {service: its route policies that prefer what is near}
        self._near: dict[Name, set[Key]] = {}
        # {tenant: {ingress that leads to a service of it: its own service}}
        self._ingresses: dict[str, dict[Key, Name]] = {}
        # Rate policies of several services, by width and name.
        self._wide: dict[tuple[Width, Key], Any] = {}

    def identity(self, service: Name) -> SpiffeId:
        """Who the servers of a service are: another trust domain's, if that is where it is served."""
        message = self.find("Service", *service)
        if message is not None and message.spec.spiffe_id:
            return SpiffeId.parse(message.spec.spiffe_id)
        return SpiffeId.workload(self.trust_domain, service.tenant, service.name)

    def _served_by(self, who: Name | Foreign) -> list[Name]:
        if isinstance(who, Name):
            return [who] if self.find("Service", *who) is not None else []
        return [name for name in self.services() if str(self.identity(name)) == str(who)]

    def callee(self, service: Name) -> Any | None:
        """What is called by a name: a `v1.Service`, or a `v1.ExternalService`; None if there is neither."""
        return self.find("Service", *service) or self.find("ExternalService", *service)

    def externals(self, tenant: str) -> list[Name]:
        """The external services that a tenant's workloads see, in the order of their names."""
        return [name for name in self.visible(tenant) if self.is_external(name)] if self._has_externals else []

    def is_external(self, service: Name) -> bool:
        """Whether a name is that of an external service."""
        return Key("ExternalService", *service) in self._all

    def is_stream(self, service: Name) -> bool:
        """Whether an external service takes connections, and no calls that one could tell apart."""
        return is_stream(self._all[Key("ExternalService", *service)])

    def is_cut_off(self, service: Name) -> bool:
        """Whether nobody is to call a service: its identity is revoked, or its trust domain is none that is trusted."""
        who: Name | Foreign = service
        if (identity := self.identity(service)).trust_domain != self.trust_domain:
            if identity.trust_domain not in self.foreign:
                return True
            who = Foreign(identity.trust_domain, identity.path)
        return bool(self.denied) and any(one.caller == who and not one.serial for one in self.denied)

    def find(self, kind: str, tenant: str, name: str) -> Any | None:
        """The resource of that name, None if there is none."""
        return self._all.get(Key(kind, tenant, name))

    def drained(self, drain: Key) -> list[Any]:
        """The endpoints that a drain is about, in the order of their names."""
        spec = self._all[drain].spec
        return [
            message
            for service in self._drained_services(drain.tenant, spec)
            for key, message in self.of_service("Endpoint", service).items()
            if is_about(spec, key.name, message.spec)
        ]

    def of_service(self, kind: str, service: Name) -> Mapping[Key, Any]:
        """The resources of a kind that speak of a service, in the order of their names: `{key: message}`."""
        return dict(sorted(self._of_service.get(kind, {}).get(service, {}).items()))

    def services_of(self, kind: str) -> list[Name]:
        """The services that some resource of a kind speaks of, in the order of their names."""
        return sorted(service for service, found in self._of_service.get(kind, {}).items() if found)

    def rate_policies(self, service: Name) -> Mapping[Key, Any]:
        """The rate policies that are about a service, the narrowest first, then in the order of their names."""
        own = self.of_service("RatePolicy", service)
        if not self._wide or self.find("Service", *service) is None:
            return own
        wide = {
            key: message
            for (_, key), message in sorted(self._wide.items(), key=lambda item: item[0])
            if covers(key.tenant, message.spec, service)
        }
        return {**own, **wide}

    def entries_on(self, node: str) -> list[Any]:
        """The workload entries that name a node, in the order of their names."""
        return [self._all[key] for key in sorted(self._on_node["WorkloadEntry"].get(node, ()))]

    def endpoints_on(self, node: str) -> dict[Key, Any]:
        """The endpoints that a node keeps: `{key: message}`."""
        return {key: self._all[key] for key in self._on_node["Endpoint"].get(node, ())}

    def endpoint_nodes(self) -> set[str]:
        """The nodes that keep endpoints."""
        return {node for node, keys in self._on_node["Endpoint"].items() if keys}

    def owns(self, node: str, tenant: str, service: str) -> bool:
        """Whether a workload entry of that service, or of any of the tenant's if it is "", names the node."""
        return any(
            key.tenant == tenant and service in ("", self._all[key].spec.service)
            for key in self._on_node["WorkloadEntry"].get(node, ())
        )

    def all(self) -> Mapping[Key, Any]:
        """Every resource: `{key: message}`, a view that changes with the mesh."""
        return MappingProxyType(self._all)

    def services(self) -> list[Name]:
        """Every service, in the order of their names."""
        return sorted(Name(key.tenant, key.name) for key in self._all if key.kind == "Service")

    def callees(self) -> list[Name]:
        """Every service and external service, in the order of their names."""
        return sorted(Name(key.tenant, key.name) for key in self._all if key.kind in CALLED)

    def visible(self, tenant: str) -> list[Name]:
        """The services, external ones as well, that a tenant's workloads see, in the order of their names."""
        return sorted(
            {
                name
                for names in (
                    self._services.get(f"own {tenant}"),
                    self._services.get(f"to {tenant}"),
                    self._services.get("to *"),
                )
                for name in names or ()
            }
        )

    def seers(self, service: Name) -> set[str]:
        """The tenants whose workloads see a service, "*" for all."""
        return self._seen_by(service)

    def nodes_of(self, tenants: Set[str]) -> set[str]:
        """The nodes that some workload entry of one of these tenants names, "*" for all."""
        found = self._on_node["WorkloadEntry"].items()
        return {node for node, keys in found if any({key.tenant, "*"} & tenants for key in keys)}

    def near(self, tenant: str) -> list[Name]:
        """The services that a tenant sees and of which endpoints near the caller are preferred, in order."""
        return sorted(service for service, policies in self._near.items() if policies and self.sees(tenant, service))

    def sees(self, tenant: str, service: Name) -> bool:
        """Whether a tenant's workloads see a service."""
        message = self.callee(service)
        return message is not None and (
            tenant == service.tenant or not {"*", tenant}.isdisjoint(message.spec.export_to)
        )

    def candidates(self, tenant: str, short: str) -> list[Name]:
        """What a short name may mean for a tenant: its own service alone, else each that is exported to it."""
        if self.callee(Name(tenant, short)) is not None:
            return [Name(tenant, short)]
        return [name for name in self.visible(tenant) if name.name == short]

    def resolve(self, tenant: str, short: str) -> Name | None:
        """What a short name means for a tenant, None if nothing or several things."""
        found = self.candidates(tenant, short)
        return found[0] if len(found) == 1 else None

    def short_names(self, tenant: str) -> dict[str, Name]:
        """What each short name means for a tenant: `{short name: service}`, in order, without the ambiguous."""
        found = self._meanings(tenant)
        return {short: names[0] for short, names in sorted(found.items()) if len(names) == 1}

    def ambiguous_names(self, tenant: str) -> dict[str, list[Name]]:
        """The short names that mean nothing to a tenant, since several services could be meant, in order."""
        return {short: names for short, names in sorted(self._meanings(tenant).items()) if len(names) > 1}

    def _meanings(self, tenant: str) -> dict[str, list[Name]]:
        """What each short name may mean for a tenant, as `candidates` says."""
        found: dict[str, list[Name]] = {}
        for service in self.visible(tenant):
            found.setdefault(service.name, []).append(service)
        own = {short: [Name(tenant, short)] for short, names in found.items() if Name(tenant, short) in names}
        return found | own

    def versions(self, service: Name) -> list[str]:
        """The versions that a service's entries, endpoints and routes name, in order."""
        found = {
            item.spec.version
            for kind in ("WorkloadEntry", "Endpoint")
            for item in self.of_service(kind, service).values()
        }
        for policy in self.of_service("RoutePolicy", service).values():
            found.update(share.version for rule in policy.spec.rules for share in rule.split)
            found.update(rule.mirror.version for rule in policy.spec.rules if not rule.mirror.service)
        return sorted(found - {""})

    def _nodes_of(self, service: Name) -> Iterable[str]:
        """The nodes of a service's entries."""
        entries = self._of_service.get("WorkloadEntry", {}).get(service, {})
        return (node for entry in entries.values() for node in entry.spec.nodes)

    def _seen_by(self, service: Name, message: Any = None) -> set[str]:
        """The tenants that see a service, "*" for all; `message` is the service, if it is another one than is known."""
        owner = message if message is not None else self.callee(service)
        return {service.tenant, *(owner.spec.export_to if owner is not None else ())}

    def _drained_services(self, tenant: str, spec: Any) -> list[Name]:
        """The services of which a drain is about some endpoint."""
        if spec.service:
            return [Name(tenant, spec.service)]
        found = self._of_service.get("Endpoint", {}).items()
        return sorted(
            service
            for service, endpoints in found
            if service.tenant == tenant
            and any(is_about(spec, key.name, message.spec) for key, message in endpoints.items())
        )

    def _sets(self, key: Key, message: Any) -> list[str]:
        return [f"own {key.tenant}", *(f"to {tenant}" for tenant in message.spec.export_to)]

    def _add(self, key: Key, message: Any) -> None:
        self._all[key] = message
        self.named.update(named(message))
        if key.kind in CALLED:
            for index in self._sets(key, message):
                self._services.setdefault(index, set()).add(Name(key.tenant, key.name))
            self._has_externals |= key.kind == "ExternalService"
        elif key.kind == "RatePolicy" and message.spec.services:
            self._wide[width(key.tenant, message.spec), key] = message
        elif key.kind == "TrustDomain":
            self.trust_domains[key] = message
            self._name_domains()
        elif key.kind == "Drain":
            self.drains.put(key, message)
        elif key.kind == "Rollout":
            self.rollouts[key] = message
        elif key.kind != "Tenant":
            service = Name(key.tenant, message.spec.service)
            self._of_service.setdefault(key.kind, {}).setdefault(service, {})[key] = message
            if key.kind == "RoutePolicy" and prefers_near(message):
                self._near.setdefault(service, set()).add(key)
            for tenant in led_to(message):
                self._ingresses.setdefault(tenant, {})[key] = service
        for node in nodes_named(key, message):
            self._on_node[key.kind].setdefault(node, set()).add(key)

    def _name_domains(self) -> None:
        names = {message.spec.trust_domain for message in self.trust_domains.values()} - {self.trust_domain}
        self.foreign = tuple(sorted(names))

    def _drop(self, key: Key, message: Any) -> None:
        del self._all[key]
        self.named.subtract(named(message))
        if key.kind in CALLED:
            for index in self._sets(key, message):
                self._services[index].discard(Name(key.tenant, key.name))
        elif key.kind == "RatePolicy" and message.spec.services:
            del self._wide[width(key.tenant, message.spec), key]
        elif key.kind == "TrustDomain":
            del self.trust_domains[key]
            self._name_domains()
        elif key.kind == "Drain":
            self.drains.drop(key)
        elif key.kind == "Rollout":
            del self.rollouts[key]
        elif key.kind != "Tenant":
            service = Name(key.tenant, message.spec.service)
            del self._of_service[key.kind][service][key]
            if key.kind == "RoutePolicy":
                self._near.get(service, set()).discard(key)
            for tenant in led_to(message):
                del self._ingresses[tenant][key]
        for node in nodes_named(key, message):
            self._on_node[key.kind][node].discard(key)
