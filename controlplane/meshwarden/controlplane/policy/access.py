"""AccessPolicy to neutral form: the policies of a service add up, and without one nobody may call it."""

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
    return Access(service, tuple(grants))
