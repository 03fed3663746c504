"""Names of a question that nothing has: said before the question is answered, as if they were there."""

import difflib
from collections.abc import Callable
from typing import Final

from meshwarden.controlplane.api.errors import NotFound
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import admin_service_pb2 as v1

_MOST_CHARS: Final = 63
"""Of a name; a longer one is nobody's."""


def require_callee(mesh: Mesh, callee: str, shown: Callable[[str], bool]) -> None:
    """Sees to it that a service is there, "<tenant>/<service>", if whoever asks may know.

    Raises:
        NotFound: it is not.
    """
    tenant, _, name = callee.partition("/")
    if shown(tenant) and mesh.callee(Name(tenant, name)) is None:
        raise NotFound(f"there is no Service {callee}{_hint(mesh.callees(), tenant, name, shown)}")


def say_unknown_caller(answer: v1.ExplainResponse, mesh: Mesh, caller: str, shown: Callable[[str], bool]) -> None:
    """Puts before what is explained that there is no such caller: its service may come after its policy, or never.

    Args:
        answer: what is explained.
        mesh: what there is.
        caller: who calls, "<tenant>/<service>"; of another trust domain's nothing is known.
        shown: whether who asks may be shown the names of a tenant.
    """
    tenant, _, name = caller.partition("/")
    if caller.startswith("spiffe://") or not shown(tenant) or mesh.find("Service", tenant, name) is not None:
        return
    text = f"there is no Service {caller}, and nobody calls as one{_hint(mesh.services(), tenant, name, shown)}"
    first = v1.ExplainStep(stage="caller", text=f"{text}. What follows holds once there is")
    steps = [first, *answer.steps]
    del answer.steps[:]
    answer.steps.extend(steps)


def _hint(known: list[Name], tenant: str, name: str, shown: Callable[[str], bool]) -> str:
    """What may have been meant: a service of that tenant with a name much like it, else one of a tenant that is."""
    own = {one.name for one in known if one.tenant == tenant}
    close = difflib.get_close_matches(name[:_MOST_CHARS], own, n=1)
    if close:
        return f"; did you mean {tenant}/{close[0]}?"
    tenants = {one.tenant for one in known if one.name == name and shown(one.tenant)}
    near = difflib.get_close_matches(tenant[:_MOST_CHARS], tenants, n=1)
    return f"; did you mean {near[0]}/{name}?" if near else ""
