"""What would become of a call, and which resource decides: the same neutral values that the dialects are made of.

Whoever does not see the callee's tenant is told what becomes of the call and why, without that tenant's resources.
"""

from collections.abc import Callable
from typing import Final

from meshwarden.certs.spiffe_id import account_of
from meshwarden.controlplane.policy import access, choice, external, permissive, rate, route
from meshwarden.controlplane.policy.endpoint import state_of
from meshwarden.controlplane.policy.external import External
from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Foreign, Key, Limits, Name, Rate
from meshwarden.controlplane.policy.stage import changes_of, is_live, services_of
from meshwarden.controlplane.policy.told import told
from meshwarden.controlplane.policy.window import moment
from meshwarden.controlplane.resources.reach import Width
from meshwarden.sdk.quota.unit import CONCURRENT, REQUESTS
from meshwarden.v1 import admin_service_pb2, resources_pb2
from meshwarden.v1.report_pb2 import CallStat

_WHERE: Final = {
    Width.SERVICE: "across the mesh",
    Width.TENANT: "across the mesh, over several services",
    Width.MESH: "across the mesh, over several tenants' services",
}


class _Call:
    """The call asked about, and the answer as it grows."""

    def __init__(
        self,
        mesh: Mesh,
        request: admin_service_pb2.ExplainRequest,
        shown: Callable[[str], bool],
        at_s: float | None,
    ) -> None:
        self.mesh, self.shown, self.at_s = mesh, shown, at_s
        self.caller = _caller(getattr(request, "from"))
        self.is_foreign = isinstance(self.caller, Foreign)
        """Whether the caller is of another trust domain."""
        self.tenant = account_of(self.caller.trust_domain) if isinstance(self.caller, Foreign) else self.caller.tenant
        """Whose the call is."""
        self.callee = _name(request.to)
        self.service = mesh.callee(self.callee)
        self.outside = external.find(mesh, self.callee)
        """What it is, if it lies outside of the mesh."""
        self.verb, _, target = request.method.rpartition(" ")
        self.path = target.partition("?")[0]
        if not self.verb and self.service is not None and self.service.spec.protocol == resources_pb2.ServiceSpec.GRPC:
            self.verb = "POST"  # what every gRPC call is
        self.headers = {key.lower(): value for key, value in request.headers.items()}
        self.answer = admin_service_pb2.ExplainResponse()

    def step(self, stage: str, ok: bool, text: str, resource: str = "", field: str = "") -> None:
        """Adds a step."""
        self.answer.steps.add(stage=stage, resource=resource, field=field, text=text, ok=ok)


def explain(
    mesh: Mesh,
    request: admin_service_pb2.ExplainRequest,
    shown: Callable[[str], bool] = lambda tenant: True,
    at_s: float | None = None,
    *,
    is_staged: bool = False,
) -> admin_service_pb2.ExplainResponse:
    """Says what would become of a call. Every stage is answered, also those after a refusal.

    A method without a verb to an HTTP service fits only patterns without one.

    Args:
        mesh: what there is.
        request: the call.
        shown: whether who asks may be shown the resources of a tenant. Where they may not be shown the callee's, the
            stages are visibility and, where the name resolves, access.
        at_s: the present, in seconds since 1970; without it nothing holds that lets in for a time.
        is_staged: whether to say as well what becomes of it where a node has the changes of a rollout, by a copy of the
            mesh.
    """
    call = _Call(mesh, request, shown, at_s)
    stages = (
        (_visibility, _rollout, _access, _route, _limit, _choice, _endpoints)
        if shown(call.callee.tenant)
        else (_outside,)
    )
    for stage in stages:
        stage(call)
    if is_staged and (key := _rollout_of(call)) is not None and shown(call.callee.tenant):
        changed = mesh.fork()
        changed.apply(changes_of(mesh.rollouts[key]))
        there = explain(changed, request, shown, at_s)
        staged = call.answer.staged
        staged.rollout, staged.decision = f"Rollout {key.tenant}/{key.name}", there.decision
        staged.steps.extend(step for step in there.steps if step not in call.answer.steps)
        staged.routes.extend(there.routes)
    return call.answer


def _outside(call: _Call) -> None:
    """What the caller's side would find out by calling."""
    callee, tenant = call.callee, call.tenant
    call.answer.decision = CallStat.DENIED
    call.answer.visible = call.service is not None and call.mesh.sees(tenant, callee)
    if not call.answer.visible:
        call.step("visibility", False, f"tenant {tenant} sees no service {callee}: its name does not resolve there")
        return
    call.step("visibility", True, _names(call))
    said = access.access(call.mesh, callee).at(call.at_s)
    if call.caller in said.revoked:
        call.step("access", False, f"denied: the identity of {call.caller} is revoked")
        return
    if said.find_denial(call.caller, call.path, call.verb, call.headers) is not None:
        call.step("access", False, f"denied: an AccessPolicy of tenant {callee.tenant} denies {call.caller} this")
        return
    if said.find(call.caller, call.path, call.verb, headers=call.headers) is None:
        call.step("access", False, f"denied: no AccessPolicy of tenant {callee.tenant} lets {call.caller} call this")
        return
    call.answer.decision = CallStat.ALLOWED
    call.step("access", True, f"allowed: an AccessPolicy of tenant {callee.tenant} lets {call.caller} call this")


def _rollout(call: _Call) -> None:
    """Whether some nodes have other policies than are told here."""
    key = _rollout_of(call)
    if key is not None:
        rollout = call.mesh.rollouts[key]
        number, stages = rollout.status.stage + 1, len(rollout.spec.stages)
        text = f"under way, in stage {number} of {stages}: its nodes have other policies than these, of all others"
        call.step("rollout", True, text, f"Rollout {key.tenant}/{key.name}")


def _rollout_of(call: _Call) -> Key | None:
    """The rollout under way that changes policies of the callee: its tenant's, which has one at a time."""
    for key, rollout in call.mesh.rollouts.items():
        is_theirs = key.tenant == call.callee.tenant and is_live(rollout)
        if is_theirs and call.callee in frozenset().union(*services_of(rollout, call.mesh).values()):
            return key
    return None


def _visibility(call: _Call) -> None:
    callee, tenant = call.callee, call.tenant
    title = f"{'Service' if call.outside is None else 'ExternalService'} {callee}"
    if call.service is None:
        call.step("visibility", False, f"there is no service {callee}")
        return
    if call.is_foreign and call.outside is None:
        call.answer.visible = True
        text = f"{call.caller} is of another trust domain: no name of this mesh resolves there, it calls an address"
        call.step("visibility", True, text)
        return
    call.answer.visible = call.mesh.sees(tenant, callee)
    if not call.answer.visible:
        call.step(
            "visibility",
            False,
            f"{callee} is not exported to tenant {tenant}: its name does not resolve there. Add {tenant} to it",
            title,
            "spec.exportTo",
        )
        return
    call.step("visibility", True, _names(call), title, "" if tenant == callee.tenant else "spec.exportTo")


def _names(call: _Call) -> str:
    """By which names the caller's tenant knows the callee; of other services it names those that may be shown."""
    callee, tenant = call.callee, call.tenant
    found = call.mesh.candidates(tenant, callee.name)
    names = [f"{callee.name}.{callee.tenant}"] + ([callee.name] if found == [callee] else [])
    text = f"tenant {tenant} sees it as {' and as '.join(names)}"
    others = [str(name) for name in found if name == callee or call.shown(name.tenant)]
    hidden = ["another tenant's"] if len(others) < len(found) else []
    if len(found) > 1:
        text += f"; {callee.name} alone is ambiguous: {', '.join(others + hidden)}"
    elif found != [callee]:
        text += f"; {callee.name} alone is {(others + hidden)[0]}"
    return text


def _access(call: _Call) -> None:
    if isinstance(call.service, resources_pb2.Service) and call.service.spec.spiffe_id:
        call.answer.decision = CallStat.ALLOWED
        text = f"{call.service.spec.spiffe_id} serves it: whether {call.caller} may call is for its trust domain to say"
        call.step("access", True, text, f"Service {call.callee}", "spec.spiffeId")
        return
    timed = access.access(call.mesh, call.callee)
    said = timed.at(call.at_s)
    grant = said.find(call.caller, call.path, call.verb, headers=call.headers)
    call.answer.decision = CallStat.ALLOWED if grant is not None else CallStat.DENIED
    if grant is not None:
        _by(call, grant, f"allowed: {grant.caller} may call this")
    elif call.caller in said.revoked:
        text = f"denied: the identity of {call.caller} is revoked; see `meshwarden identity denied`"
        call.step("access", False, text)
    elif (denial := said.find_denial(call.caller, call.path, call.verb, call.headers)) is not None:
        _by(call, denial, f"denied: {denial.caller} may not call this, whatever allows it")
    elif (grant := _out_of_time(call, timed)) is not None:
        text = f"denied: allowed only {grant.during}"
        call.step("access", False, text, f"AccessPolicy {grant.policy}", f"spec.allow[{grant.rule}].during")
    elif not said.grants:
        text = f"denied: no AccessPolicy allows calls of {call.callee}, and without one nobody may call it"
        call.step("access", False, text)
    else:
        _not_allowed(call, said)
    _dry_run(call, said)
    _in_the_clear(call)


def _in_the_clear(call: _Call) -> None:
    """Who else may call this, for a time."""
    found = permissive.find(call.mesh, call.callee)
    if found is None or not found.holds(call.at_s) or not any(one.fits(call.path, call.verb) for one in found.methods):
        return
    text = f"until {moment(found.until_s, 'UTC')} anybody may call this in the clear, as nobody who is known"
    call.step("in the clear", True, text, f"Service {call.callee}", "spec.permissive")


def _dry_run(call: _Call, said: Access) -> None:
    """What would be otherwise if policies in dry run were enforced."""
    rule = said.find_dry_run(call.caller, call.path, call.verb, call.headers)
    if rule is not None:
        text = f"in dry run: if it were enforced the call would be {'allowed' if rule.field == 'allow' else 'denied'}"
        call.step("dry run", True, text, f"AccessPolicy {rule.policy}", f"spec.{rule.field}[{rule.rule}]")


def _by(call: _Call, grant: Grant, text: str) -> None:
    """What a rule says of the call, with what it asks of headers."""
    if grant.headers:
        text += f", {' and '.join(map(str, grant.headers))}"
    if grant.during is not None and call.at_s is not None:
        end_s = grant.during.ends(call.at_s)
        text += f", until {moment(end_s, grant.during.zone)}" if end_s is not None else ""
    place = f"spec.{grant.field}[{grant.rule}]"
    call.step("access", grant.field == "allow", text, f"AccessPolicy {grant.policy}", place)


def _out_of_time(call: _Call, timed: Access) -> Grant | None:
    """The rule that would allow the call at another time."""
    for grant in timed.grants:
        is_off = grant.during is not None and (call.at_s is None or not grant.during.holds(call.at_s))
        if is_off and grant.fits(call.caller, call.path, call.verb, call.headers):
            return grant
    return None


def _not_allowed(call: _Call, said: Access) -> None:
    own = [grant for grant in said.grants if grant.caller.fits(call.caller)]
    # If only headers are missing, that is the rule to name.
    near = [grant for grant in own if any(method.fits(call.path, call.verb) for method in grant.methods)]
    if near:
        missing = [header for header in near[0].headers if not header.fits(call.headers)]
        text = f"denied: allowed only {' and '.join(map(str, missing))}"
        call.step("access", False, text, f"AccessPolicy {near[0].policy}", f"spec.allow[{near[0].rule}].headers")
        return
    policies = list(dict.fromkeys(str(item.policy) for item in said.grants))
    text = "allows this caller other methods, not this one" if own else f"allows {call.caller} nothing"
    call.step("access", False, f"denied: {' and '.join(policies)} {text}", f"AccessPolicy {policies[0]}", "spec.allow")


def _route(call: _Call) -> None:
    said = route.route(call.mesh, call.callee)
    rule = said.find(call.caller, call.path, call.verb, call.headers)
    total = sum(weight for _, weight in rule.split)
    for version, weight in rule.split:
        healthy = _healthy(call, version)
        call.answer.routes.add(version=version, percent=100 * weight / total, healthy_endpoints=healthy)
    shares = ", ".join(f"{item.percent:g}% to {item.version or 'every version'}" for item in call.answer.routes)
    resource = f"RoutePolicy {said.policy}" if said.policy is not None and rule.index >= 0 else ""
    call.step("route", True, shares, resource, f"spec.rules[{rule.index}]" if resource else "")
    for one in told(said, rule, call.path, call.verb, call.headers):
        call.step(one.stage, True, one.text, resource, one.field)


def _limit(call: _Call) -> None:
    policies = rate.limits(call.mesh, call.callee)
    for policy in policies:
        said = rate.of_policy(call.mesh, policy.policy)
        if said is not None:
            _limit_of(call, said)
    if not policies:
        call.step("limit", True, f"tenant {call.tenant} is not limited")


def _limit_of(call: _Call, said: Limits) -> None:
    tenant, title = call.tenant, f"RatePolicy {said.policy}"
    limit = said.find(tenant)
    if said.adaptive is not None:
        text = f"each server takes from {said.adaptive.least} to {said.adaptive.most} calls at once, as it finds"
        text += f"; tenant {tenant} has a part of weight {limit.weight if limit is not None else 1}, and what is spare"
        if limit is not None and limit.rate.amount:
            text += f", up to {limit.rate.amount}"
        place = f"spec.limits[{said.limits.index(limit)}]" if limit is not None else "spec.adaptive"
        call.step("limit", True, text, title, place)
        return
    if limit is None:
        call.step("limit", True, f"tenant {tenant} is not limited", title)
        return
    own = rate_text(limit.rate, said)
    call.answer.limit = f"{call.answer.limit}; {own}" if call.answer.limit else own
    where = _WHERE[said.width] if said.mesh else "at each enforcement point"
    shared = "one limit for the tenant" if limit.tenant == tenant else "a limit of its own, as every tenant not named"
    text = f"{own} {where}: {shared}"
    if said.total is not None:
        text += f"; of all callers together {rate_text(said.total, said)}"
    place = f"spec.limits[{said.limits.index(limit)}]"
    parts = limit.methods
    of_service = next((part for part in limit.services if part.service == call.callee), None)
    if of_service is not None:
        text += f"; of this service {rate_text(of_service.rate, said)}"
        place += f".services[{limit.services.index(of_service)}]"
        parts = of_service.methods
    part = next((part for part in parts if call.path in part.methods), None)
    if part is not None:
        text += f"; of this method {rate_text(part.rate, said)}"
        place += f".methods[{parts.index(part)}]"
    elif limit.tenant == "*" and said.total is not None and limit.rate == said.total:
        place = "spec.total"
    call.step("limit", True, text + ("; in shadow: nothing is refused" if said.shadow else ""), title, place)


def _choice(call: _Call) -> None:
    said = choice.choice(call.mesh, call.callee)
    for field, text in choice.sentences(said):
        call.step("choice", True, text, f"RoutePolicy {said.policy}", field)


def _endpoints(call: _Call) -> None:
    if call.outside is not None:
        _outside_hosts(call, call.outside)
        return
    found = call.mesh.of_service("Endpoint", call.callee)
    call.answer.endpoints = len(found)
    call.answer.healthy_endpoints = _healthy(call, "")
    reachable = any(item.healthy_endpoints for item in call.answer.routes if item.percent)
    text = f"{call.answer.healthy_endpoints} of {len(found)} are healthy"
    drains = sorted(
        {drain for key, item in found.items() if (drain := call.mesh.drains.find(key, item.spec)) is not None}
    )
    if drains:
        text = f"{call.answer.healthy_endpoints} of {len(found)} are healthy and not drained"
    if not reachable:
        text += ", and none where the call goes: it would get UNAVAILABLE (503)"
    title = f"Drain {drains[0].tenant}/{drains[0].name}" if drains else ""
    call.step("endpoints", reachable, text, title, "spec" if drains else "")


def _outside_hosts(call: _Call, said: External) -> None:
    """Where the caller's Envoy takes it to; whether anybody is there, it finds out by itself."""
    where = ", ".join(f"{address}:{port}" for address, port in said.hosts)
    proved = f"proved as {said.server}" if said.server else "in the clear, proved by nothing"
    del call.answer.routes[:]  # of versions, and how healthy these are, nothing is known
    text = f"{where}, outside of the mesh, {proved}: through an Envoy of the caller, which an entry needs for it"
    call.step("endpoints", True, text, f"ExternalService {said.service}", "spec.hosts")


def _healthy(call: _Call, version: str) -> int:
    found = call.mesh.of_service("Endpoint", call.callee).items()
    return sum(
        state_of(call.mesh, key, item.spec) == "HEALTHY"
        for key, item in found
        if not version or item.spec.version == version
    )


def rate_text(limit: Rate, said: Limits) -> str:
    """How much a limit of a policy is, for people."""
    if said.unit == CONCURRENT:
        return f"{limit.amount} calls at once"
    what = "calls" if said.unit == REQUESTS else said.unit
    if said.period is not None:
        return f"{limit.amount} {what} each {said.period.lower()} of {said.zone}"
    per = "1 s" if limit.per_s == 1 else f"{limit.per_s:g} s"
    return f"{limit.amount} {what} in {per}, {limit.burst} at once"


def _caller(text: str) -> Name | Foreign:
    if not text.startswith("spiffe://"):
        return _name(text)
    trust_domain, _, path = text.removeprefix("spiffe://").partition("/")
    return Foreign(trust_domain, f"/{path}")


def _name(text: str) -> Name:
    tenant, _, name = text.partition("/")
    return Name(tenant, name)
