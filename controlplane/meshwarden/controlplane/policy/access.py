"""AccessPolicy to neutral form: the policies of a service add up, and without one nobody may call it.

Who is revoked may not, whatever they say.
"""

from dataclasses import replace

from meshwarden.controlplane.policy import denied
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Access, Caller, Grant, Method, Name, caller_of


def access(mesh: Mesh, service: Name) -> Access:
    """Who may call a service."""
    grants: list[Grant] = []
    for key, policy in mesh.of_service("AccessPolicy", service).items():
        for index, rule in enumerate(policy.spec.allow):
            methods = tuple(Method.parse(text) for text in rule.methods) or (ANY_METHOD,)
            for caller in getattr(rule, "from"):
                who = caller_of(caller, key.tenant)
                # A trust domain that was taken back is trusted no more, whatever policies still say of it.
                if isinstance(who, Caller) or who.trust_domain in mesh.foreign:
                    grants.append(Grant(who, methods, Name(key.tenant, key.name), index))
    granted = Access(service, tuple(grants))
    if not mesh.denied:
        return granted
    found = denied.of(granted, mesh.denied)
    return replace(
        granted,
        revoked=tuple(dict.fromkeys(one.caller for one in found if one.caller is not None and not one.serial)),
        serials=tuple(dict.fromkeys((one.serial, one.caller) for one in found if one.serial)),
    )
