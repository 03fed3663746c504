"""AccessPolicy to neutral form: the policies of a service add up, and without one nobody may call it.

What one of them denies is denied whatever others allow, and who is revoked may not call whatever they say. Those in dry
run are held apart: they make up what would be.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from meshwarden.controlplane.policy import denied
from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.mesh import Key, Mesh
from meshwarden.controlplane.policy.neutral import ANY_METHOD, AnyCaller, Caller, Header, Method, Name, caller_of
from meshwarden.controlplane.policy.window import Window
from meshwarden.v1 import node_service_pb2
from meshwarden.v1.resources_pb2 import AccessRule


def access(mesh: Mesh, service: Name) -> Access:
    """Who may call a service."""
    policies = mesh.of_service("AccessPolicy", service)
    enforced = {key: policy for key, policy in policies.items() if not policy.spec.dry_run}
    said = _access(mesh, service, enforced)
    return said if len(enforced) == len(policies) else replace(said, shadow=_access(mesh, service, policies))


def _access(mesh: Mesh, service: Name, policies: Mapping[Key, Any]) -> Access:
    grants: list[Grant] = []
    denials: list[Grant] = []
    for key, policy in policies.items():
        name = Name(key.tenant, key.name)
        grants += _grants(mesh, name, "allow", policy.spec.allow)
        denials += _grants(mesh, name, "deny", policy.spec.deny)
    said = Access(service, tuple(grants), denials=tuple(denials))
    if not mesh.denied:
        return said
    found = denied.of(said, mesh.denied)
    return replace(
        said,
        revoked=tuple(dict.fromkeys(one.caller for one in found if one.caller is not None and not one.serial)),
        serials=tuple(dict.fromkeys((one.serial, one.caller) for one in found if one.serial)),
    )


def told(mesh: Mesh, service: Name, at_s: float | None = None) -> node_service_pb2.ServerAccess:
    """The same for servers that ask by themselves: the policies with what they leave out filled in.

    What doesn't hold at a moment, which `Access.at` has as well, is about nobody.
    """
    answer = node_service_pb2.ServerAccess()
    for key, policy in mesh.of_service("AccessPolicy", service).items():
        said = answer.policies.add(policy=str(Name(key.tenant, key.name)), spec=policy.spec)
        for field in ("allow", "deny"):
            for rule in getattr(said.spec, field):
                callers = getattr(rule, "from")
                kept = [one for one in callers if _is_trusted(mesh, caller_of(one, key.tenant))]
                kept = kept if _holds(rule, field == "allow", at_s) else []
                rule.ClearField("during")
                del callers[:]
                for one in kept:
                    one.tenant = one.tenant or (key.tenant if one.service else "")
                    callers.append(one)
    return answer


def _holds(rule: AccessRule, is_grant: bool, at_s: float | None) -> bool:
    if not rule.HasField("during"):
        return True
    return not is_grant if at_s is None else Window.of(rule.during).holds(at_s)


def _is_trusted(mesh: Mesh, caller: AnyCaller) -> bool:
    # A trust domain that was taken back is trusted no more, whatever policies still say of it.
    return isinstance(caller, Caller) or caller.trust_domain in mesh.foreign


def _grants(mesh: Mesh, policy: Name, field: Literal["allow", "deny"], rules: Iterable[Any]) -> Iterator[Grant]:
    for index, rule in enumerate(rules):
        methods = tuple(map(Method.parse, rule.methods)) or (ANY_METHOD,)
        headers = tuple(map(Header.of, rule.headers))
        during = Window.of(rule.during) if rule.HasField("during") else None
        for said in getattr(rule, "from"):
            caller = caller_of(said, policy.tenant)
            if _is_trusted(mesh, caller):
                yield Grant(caller, methods, policy, index, headers, field, during)
