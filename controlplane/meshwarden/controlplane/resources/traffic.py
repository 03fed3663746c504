"""What a RoutePolicy must hold by itself, that data planes would refuse or could not mean."""

from collections.abc import Iterator
from typing import Any, Final

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.v1.resources_pb2 import RoutePolicy, RoutePolicySpec

MOST_ROUTES: Final = 4096
"""How many routes a policy may become: each is looked at for each call that no one before it fits."""
RESERVED: Final = frozenset(
    {
        *("host", "content-length", "content-type", "transfer-encoding", "connection", "keep-alive", "te", "trailer"),
        *("upgrade", "proxy-connection", "forwarded", "via", "retry-after", "mesh-decision"),
        *("traceparent", "tracestate", "baggage", "b3", "x-request-id", "x-client-trace-id", "x-ot-span-context"),
    }
)
"""Headers that no policy may change: what they say is the mesh's own word, or its transport's."""
RESERVED_PREFIXES: Final = ("x-meshwarden-", "grpc-", "x-envoy-", "x-forwarded-", "x-b3-", "ratelimit")


def route_faults(policy: RoutePolicy) -> Iterator[FieldFault]:
    """The faults of a policy."""
    spec = policy.spec
    routes = 0
    for number, rule in enumerate(spec.rules):
        path = f"spec.rules[{number}]"
        yield from _split_faults(f"{path}.split", rule.split)
        for index, caller in enumerate(getattr(rule.match, "from")):
            yield from _caller_faults(f"{path}.match.from[{index}]", caller)
        methods = rule.match.methods or ["/*"]
        both = sum(meet(method, one) for method in methods for one in spec.idempotent) if rule.HasField("retry") else 0
        routes += (len(methods) + both) * (2 if rule.fault.headers else 1)
        if rule.HasField("retry"):
            yield from _retry_faults(f"{path}.retry", rule)
            if not both:
                text = "no method of this rule is idempotent: name those that may be made again in spec.idempotent"
                yield FieldFault(f"{path}.retry", text)
        if rule.HasField("fault") and not (rule.fault.HasField("delay") or rule.fault.HasField("abort")):
            yield FieldFault(f"{path}.fault", "give delay, abort or both")
        if rule.HasField("mirror"):
            yield from _mirror_faults(f"{path}.mirror", rule.mirror, spec.service)
        yield from _header_faults(f"{path}.requestHeaders", rule.request_headers)
        yield from _header_faults(f"{path}.responseHeaders", rule.response_headers)
    if routes > MOST_ROUTES:
        text = f"they become {routes} routes, of which a policy may have {MOST_ROUTES}: name fewer methods"
        yield FieldFault("spec.rules", text)
    yield from _budget_faults(spec)


def meet(one: str, other: str) -> bool:
    """Whether some call is of both methods, each written as in an AccessRule."""
    (verb, path, rest), (other_verb, other_path, other_rest) = _parts(one), _parts(other)
    if verb and other_verb and verb != other_verb:
        return False
    if rest and path == other_path[: len(path)]:
        return True
    return path.startswith(other_path) if other_rest else path == other_path


def _parts(method: str) -> tuple[str, str, bool]:
    """The verb, the path, and whether any rest may follow."""
    verb, _, path = method.rpartition(" ")
    return verb, path.removesuffix("*"), path.endswith("*")


def _split_faults(path: str, split: Any) -> Iterator[FieldFault]:
    if split and not any(part.weight for part in split):
        yield FieldFault(path, "all weights are 0: the calls would go nowhere")
    seen: set[str] = set()
    for place, part in enumerate(split):
        if part.version in seen:
            yield FieldFault(f"{path}[{place}].version", f"{part.version} has a share already")
        seen.add(part.version)


def _caller_faults(path: str, caller: Any) -> Iterator[FieldFault]:
    for field, name in (("spiffe_id", "spiffeId"), ("trust_domain", "trustDomain")):
        if getattr(caller, field):
            yield FieldFault(f"{path}.{name}", "callers of another trust domain go their own way: no route is theirs")
            return
    if not caller.service:
        yield FieldFault(f"{path}.service", 'is required; "*" is every service of the tenant')


def _mirror_faults(path: str, mirror: Any, service: str) -> Iterator[FieldFault]:
    if bool(mirror.service) == bool(mirror.version):
        yield FieldFault(path, "give service or version, one of the two")
    elif mirror.service == service:
        yield FieldFault(f"{path}.service", "is the service itself: give a version of it")


def _header_faults(path: str, change: Any) -> Iterator[FieldFault]:
    named = [(f"set[{number}].name", item.name) for number, item in enumerate(change.set)]
    named += [(f"add[{number}].name", item.name) for number, item in enumerate(change.add)]
    for place, name in named:
        if name.endswith("-bin"):
            yield FieldFault(f"{path}.{place}", "holds bytes, which can't be said here")
    named += [(f"remove[{number}]", name) for number, name in enumerate(change.remove)]
    seen: set[str] = set()
    for place, name in named:
        if name in RESERVED or name.startswith(RESERVED_PREFIXES):
            yield FieldFault(
                f"{path}.{place}", f"{name} says who calls, traces a call or carries it: it stays as it is"
            )
        elif name in seen:
            yield FieldFault(f"{path}.{place}", f"{name} is named already")
        seen.add(name)


def _retry_faults(path: str, rule: Any) -> Iterator[FieldFault]:
    retry = rule.retry
    ends_ns = rule.timeout.ToNanoseconds() if rule.HasField("timeout") else None
    if ends_ns is not None and retry.per_try_timeout.ToNanoseconds() > ends_ns:
        yield FieldFault(f"{path}.perTryTimeout", "is longer than the rule's timeout, which ends all attempts")
    base = retry.backoff.base.ToNanoseconds() if retry.backoff.HasField("base") else 25_000_000
    if retry.backoff.HasField("max") and retry.backoff.max.ToNanoseconds() < base:
        yield FieldFault(f"{path}.backoff.max", "is shorter than the first wait")


def _budget_faults(spec: RoutePolicySpec) -> Iterator[FieldFault]:
    first = None
    for number, rule in enumerate(spec.rules):
        if not rule.retry.HasField("budget"):
            continue
        if first is None:
            first = number
        elif rule.retry.budget != spec.rules[first].retry.budget:
            text = f"rules[{first}] has another: all calls to a version share one"
            yield FieldFault(f"spec.rules[{number}].retry.budget", text)
