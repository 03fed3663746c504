"""RoutePolicy to neutral form: the first rule that fits decides; what none fits goes to every version alike."""

from typing import Any

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Header, Method, Name, caller_of
from meshwarden.controlplane.policy.traffic import Abort, Budget, Change, Delay, Fault, Mirror, Retry, Route, Rule

EVERY_VERSION = Rule((("", 1),))


def route(mesh: Mesh, service: Name) -> Route:
    """What becomes of the calls of a service. Of two policies, which validation refuses, the first by name counts."""
    for key, policy in mesh.of_service("RoutePolicy", service).items():
        spec = policy.spec
        rules = tuple(_rule(index, rule, service) for index, rule in enumerate(spec.rules))
        idempotent = tuple(Method.parse(text) for text in spec.idempotent)
        return Route(service, (*rules, EVERY_VERSION), Name(key.tenant, key.name), idempotent)
    return Route(service, (EVERY_VERSION,))


def _rule(index: int, rule: Any, service: Name) -> Rule:
    split = tuple((share.version, share.weight) for share in rule.split if share.weight)
    return Rule(
        split or EVERY_VERSION.split,
        tuple(Method.parse(text) for text in rule.match.methods),
        tuple(map(Header.of, rule.match.headers)),
        index,
        tuple(caller_of(caller, service.tenant) for caller in getattr(rule.match, "from")),
        rule.timeout.ToTimedelta() if rule.HasField("timeout") else None,
        _retry(rule.retry) if rule.HasField("retry") else None,
        _mirror(rule.mirror, service) if rule.HasField("mirror") else None,
        _fault(rule.fault) if rule.HasField("fault") else None,
        _change(rule.request_headers),
        _change(rule.response_headers),
    )


def _retry(said: Any) -> Retry:
    base = said.backoff.base.ToTimedelta() if said.backoff.HasField("base") else Retry.base
    return Retry(
        tuple(sorted(code for code in said.codes if not code.isdigit())),
        tuple(sorted(int(code) for code in said.codes if code.isdigit())),
        said.attempts or Retry.attempts,
        said.per_try_timeout.ToTimedelta() if said.HasField("per_try_timeout") else None,
        base,
        said.backoff.max.ToTimedelta() if said.backoff.HasField("max") else 10 * base,
        _budget(said.budget) if said.HasField("budget") else None,
    )


def _mirror(said: Any, service: Name) -> Mirror:
    # A service of the same tenant, whatever a policy says: nobody's calls are copied to another tenant.
    to = Name(service.tenant, said.service) if said.service else service
    return Mirror(to, said.version, said.percent if said.HasField("percent") else Mirror.percent)


def _fault(said: Any) -> Fault:
    delay, abort = said.delay, said.abort
    return Fault(
        Delay(delay.fixed_delay.ToTimedelta(), delay.percent) if said.HasField("delay") else None,
        Abort(abort.grpc_status, abort.http_status, abort.percent) if said.HasField("abort") else None,
        tuple(map(Header.of, said.headers)),
    )


def _change(said: Any) -> Change:
    put, add = (tuple((item.name, item.value) for item in items) for items in (said.set, said.add))
    return Change(put, add, tuple(said.remove))


def _budget(said: Any) -> Budget:
    return Budget(said.percent, said.min_retries if said.HasField("min_retries") else Budget.least)
