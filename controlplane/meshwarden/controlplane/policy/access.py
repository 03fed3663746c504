"""AccessPolicy to neutral form: the policies of a service add up, and without one nobody may call it.

Who is revoked may not, whatever they say.
"""

from dataclasses import replace

from meshwarden.controlplane.policy import denied
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Access, Caller, Grant, Method, Name


def access(mesh: Mesh, service: Name) -> Access:
    """Who may call a service."""
    grants: list[Grant] = []
    for key, policy in mesh.of_service("AccessPolicy", service).items():
        for index, rule in enumerate(policy.spec.allow):
            methods = tuple(Method.parse(text) for text in rule.methods) or (ANY_METHOD,)
            for caller in getattr(rule, "from"):
                who = Caller(caller.tenant or key.tenant, "" if caller.service == "*" else caller.service)
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
