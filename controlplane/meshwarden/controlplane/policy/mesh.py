"""The resources of a mesh, kept up by changes.

`Mesh.apply` takes what one store revision changed and returns an `Impact`, which says what of the compiled it touches;
whatever it does not touch compiles to the same bytes as before.
"""

import copy
from collections.abc import Iterable
from typing import Any, Final

from meshwarden.certs.deny import DenyList
from meshwarden.controlplane.policy import denied
from meshwarden.controlplane.policy.denied import Epochs
from meshwarden.controlplane.policy.drain import Drains
from meshwarden.controlplane.policy.impact import Change as Change
from meshwarden.controlplane.policy.impact import Impact as Impact
from meshwarden.controlplane.policy.index import CALLED, Index
from meshwarden.controlplane.policy.mention import lets_in, names_domain, nodes_named, prefers_near
from meshwarden.controlplane.policy.named import NamedCallers, named
from meshwarden.controlplane.policy.neutral import Key as Key
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.resources.reach import covers


class Mesh(Index):
    """All resources of a mesh, which change. Not safe for use from several threads."""

    def __init__(self, trust_domain: str) -> None:
        super().__init__(trust_domain)
        self.epochs: Final = Epochs()

    def apply(self, changes: Iterable[Change]) -> Impact:
        """Takes the changes of one revision and says what they touch."""
        impact = Impact()
        for change in changes:
            before = self._all.get(change.key)
            for message in (before, change.message):
                if message is not None:
                    self._touch(impact, change.key, message)
            if before is not None:
                self._drop(change.key, before)
            if change.message is not None:
                self._add(change.key, change.message)
                self._touch(impact, change.key, change.message)
        return impact

    def fork(self) -> "Mesh":
        """Returns a mesh of the same resources that changes by itself; messages are shared, as nobody changes them."""
        fork = Mesh(self.trust_domain)
        for name, value in vars(self).items():
            setattr(fork, name, _copied(value))
        return fork

    def impact(self, states: Iterable[Change]) -> Impact:
        """Says what a change touches, in the mesh as it is, and changes nothing.

        Args:
            states: each changed resource as it was and as it became, one after the other; without a message, nothing.
        """
        impact = Impact()
        for key, message in states:
            if message is not None:
                self._touch(impact, key, message)
        return impact

    def deny(self, deny_list: DenyList) -> Impact:
        """Takes whom to refuse, and says what that touches."""
        before, self.denied = self.denied, denied.read(deny_list, self.trust_domain)
        impact = Impact()
        for revoked in {one.caller for one in before ^ self.denied if one.caller is not None and not one.serial}:
            for service in self._served_by(revoked):
                impact.services.add(service)
                impact.seen_by |= {service.tenant, *self._all[Key("Service", *service)].spec.export_to}
        for service, policies in self._of_service.get("AccessPolicy", {}).items():
            changed = [one for one in before ^ self.denied if lets_in(policies.values(), one.caller)]
            if not changed:
                continue
            impact.servers.add(service)
            if self.is_external(service):
                self._touch_outside(impact, service, None)
                continue
            for entry in self.of_service("WorkloadEntry", service).values():
                impact.nodes.update(entry.spec.nodes)
            if any(one in self.denied for one in changed):
                self.epochs.add(service, [one for one in self.denied if lets_in(policies.values(), one.caller)])
        return impact

    def cut(self, mark: str) -> Impact:
        """Has servers end all that is open, and says what that touches; `mark` is another one each time."""
        self.epochs.cut(mark)
        impact = Impact()
        for service, entries in self._of_service.get("WorkloadEntry", {}).items():
            impact.servers.add(service)
            for entry in entries.values():
                impact.nodes.update(entry.spec.nodes)
        return impact

    def _touch(self, impact: Impact, key: Key, message: Any) -> None:
        if key.kind in ("Tenant", "Rollout"):  # what a rollout changes it changes for some nodes alone
            return
        if key.kind == "TrustDomain":
            self._touch_trust(impact, message.spec.trust_domain)
            return
        if key.kind == "RatePolicy":
            impact.rates.add(Name(key.tenant, key.name))
            impact.servers.update(self._limited(key.tenant, message.spec))
            return
        if key.kind == "Drain":
            for service in self._drained_services(key.tenant, message.spec):
                impact.services.add(service)
                impact.seen_by |= self._seen_by(service)
            return
        service = Name(key.tenant, key.name if key.kind in CALLED else message.spec.service)
        if key.kind == "ExternalService" or self.is_external(service):
            self._touch_outside(impact, service, message if key.kind == "ExternalService" else None)
        if key.kind == "AccessPolicy":
            impact.servers.add(service)
            return
        if key.kind == "Ingress":
            impact.nodes.update(self._nodes_of(service))
            return
        impact.services.add(service)
        if key.kind != "Endpoint":
            impact.ways.add(service)
            for ingress in self._ingresses.get(key.tenant, {}).values():
                impact.nodes.update(self._nodes_of(ingress))
        seen_by = self._seen_by(service, message if key.kind in CALLED else None)
        impact.seen_by |= seen_by
        if key.kind in (*CALLED, "RoutePolicy"):
            impact.routed |= seen_by
            impact.near |= bool(self._near.get(service)) or (key.kind == "RoutePolicy" and prefers_near(message))
        for caller in named(message):  # what is compiled for them becomes their own, or no longer is
            impact.nodes.update(self._nodes_of(caller))
        if key.kind == "Service":
            impact.servers.add(service)
            impact.nodes.update(self._nodes_of(service))
        elif key.kind == "Endpoint":
            impact.kept.update(nodes_named(key, message))
        elif key.kind == "WorkloadEntry":
            impact.nodes.update(message.spec.nodes)

    def _touch_outside(self, impact: Impact, service: Name, message: Any) -> None:
        """What is said of an external service, or itself: all who see it hold it, connections by their listeners."""
        impact.servers.add(service)
        if message is None and not self.is_stream(service):
            return
        seen_by = self._seen_by(service, message)
        for node, keys in self._on_node["WorkloadEntry"].items():
            if "*" in seen_by or any(key.tenant in seen_by for key in keys):
                impact.nodes.add(node)

    def _touch_trust(self, impact: Impact, trust_domain: str) -> None:
        """A trust domain: who may call, whose certificates listeners take, and what is served over there."""
        impact.trust = True
        impact.nodes.update(node for node, keys in self._on_node["WorkloadEntry"].items() if keys)
        for service, policies in self._of_service.get("AccessPolicy", {}).items():
            if any(names_domain(policy, trust_domain) for policy in policies.values()):
                impact.servers.add(service)
        for key, message in self._all.items():
            if key.kind == "Service" and message.spec.spiffe_id.startswith(f"spiffe://{trust_domain}/"):
                impact.services.add(Name(key.tenant, key.name))
                impact.seen_by |= {key.tenant, *message.spec.export_to}

    def _limited(self, owner: str, spec: Any) -> Iterable[Name]:
        """The services that a rate policy is about; of one service, whether there is such a one or not."""
        if spec.service:
            return (Name(owner, spec.service),)
        return [service for service in self.services() if covers(owner, spec, service)]


def _copied(value: Any) -> Any:
    """Containers anew, what is in them the same."""
    if type(value) is dict:
        return {key: _copied(item) if type(item) in (dict, set) else item for key, item in value.items()}
    return copy.copy(value) if isinstance(value, set | Drains | Epochs | NamedCallers) else value
