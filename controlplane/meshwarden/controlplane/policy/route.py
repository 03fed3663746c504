"""RoutePolicy to neutral form: the first rule that fits decides; what none fits goes to every version alike."""

from typing import Any

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Header, Method, Name, Route, Rule

EVERY_VERSION = Rule((("", 1),))


def route(mesh: Mesh, service: Name) -> Route:
    """Where the calls of a service go. Of two policies, which validation refuses, the first by name counts."""
    for key, policy in mesh.of_service("RoutePolicy", service).items():
        rules = [_rule(index, rule) for index, rule in enumerate(policy.spec.rules)]
        return Route(service, (*rules, EVERY_VERSION), Name(key.tenant, key.name))
    return Route(service, (EVERY_VERSION,))


def _rule(index: int, rule: Any) -> Rule:
    split = tuple((share.version, share.weight) for share in rule.split if share.weight)
    methods = tuple(Method.parse(text) for text in rule.match.methods)
    return Rule(split or EVERY_VERSION.split, methods, tuple(_header(item) for item in rule.match.headers), index)


def _header(item: Any) -> Header:
    kind = item.WhichOneof("value")
    if kind == "present":
        return Header(item.name, "present" if item.present else "absent")
    return Header(item.name, kind, getattr(item, kind))
