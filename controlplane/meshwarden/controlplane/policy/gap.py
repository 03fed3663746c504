"""What policies say that a client can't do, or does otherwise; none of it in silence, for `status` shows it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from meshwarden.controlplane.policy import route
from meshwarden.controlplane.policy.choice import choice
from meshwarden.controlplane.policy.choice_gap import choice_gaps
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Header, Name
from meshwarden.controlplane.policy.traffic import Retry, Rule
from meshwarden.controlplane.policy.variant import TESTED, Client, Feature, Variant, clients
from meshwarden.v1 import resources_pb2

What = Literal["refused", "equivalent", "ignored"]
_OF_TRANSPORT: Final = frozenset({"user-agent", "te", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"})


@dataclass(frozen=True, order=True)
class Gap:
    """Something that a client does otherwise than a policy says.

    Attributes:
        policy: which RoutePolicy says it; None where it is about the client itself.
        field: where, "spec.rules[0].match.headers[1]".
        kind: of which client, "node".
        what: what becomes of it there.
        why: for people.
    """

    policy: Name | None
    field: str
    kind: str
    what: What
    why: str


def gaps(mesh: Mesh, service: Name, variant: Variant) -> tuple[Gap, ...]:
    """What clients of a variant do otherwise than the RoutePolicy of a service says, in the order of its fields."""
    said = route.route(mesh, service)
    message = mesh.find("Service", *service)
    # An HTTP service has no callers that are gRPC's own.
    is_called = message is not None and message.spec.protocol == resources_pb2.ServiceSpec.GRPC
    if said.policy is None or not (is_called or variant.dialect == "envoy"):
        return ()
    policy = said.policy
    of_rules = (
        (f"spec.rules[{rule.index}].{place}", what, why)
        for rule in said.rules
        if rule.index >= 0
        for place, what, why in _of_rule(rule, variant)
    )
    found = (*of_rules, *choice_gaps(choice(mesh, service), variant))
    return tuple(Gap(policy, field, str(variant.kind), what, why) for field, what, why in found)


def untested(text: str) -> Iterator[Gap]:
    """What isn't known of the clients that an agent has seen, as `DataPlaneRef.client` names them."""
    found = clients(text)
    if len({client.kind for client in found}) > 1:
        names = " and ".join(map(str, found))
        why = f"a program with {names} gets what fits c-core: run the others as workloads of their own"
        yield Gap(None, "", ", ".join(map(str, found)), "equivalent", why)
    for client in found:
        if (reason := _unknown(client)) is not None:
            yield Gap(None, "", str(client), "equivalent", reason)


def _unknown(client: Client) -> str | None:
    if client.kind is None:
        return "it is none that is known, and gets what fits c-core"
    oldest = TESTED[client.kind]
    if oldest is None:
        return "no test runs it: what it gets was written by its documentation"
    if client.version and client.version < oldest:
        return f"it is older than the oldest that is tested, {'.'.join(map(str, oldest))}"
    return None


def _of_rule(rule: Rule, variant: Variant) -> Iterator[tuple[str, What, str]]:
    yield from _of_headers("match.headers", rule.headers, variant)
    if rule.timeout is not None and not variant.can(Feature.EXACT_TIMEOUT):
        why = "C-core ends calls up to two seconds early: it is told two more, and ends them within two seconds after"
        yield "timeout", "equivalent", why
    if rule.retry is not None:
        yield from _of_retry(rule.retry, variant)
    if rule.mirror is not None and not variant.can(Feature.MIRROR):
        yield "mirror", "ignored", "gRPC makes no copies: give the callers an Envoy"
    if rule.fault is not None:
        yield from _of_headers("fault.headers", rule.fault.headers, variant)
    for place, said in (("requestHeaders", rule.request), ("responseHeaders", rule.response)):
        if said and not variant.can(Feature.HEADERS):
            yield place, "ignored", "gRPC changes no headers by its routes: give the callers an Envoy"


def _of_retry(said: Retry, variant: Variant) -> Iterator[tuple[str, What, str]]:
    if said.codes and not variant.can(Feature.HTTP_CODES):
        yield "retry.codes", "ignored", f"gRPC has no status {', '.join(map(str, said.codes))}: name its own"
    if said.per_try is not None and not variant.can(Feature.PER_TRY_TIMEOUT):
        yield "retry.perTryTimeout", "ignored", "gRPC has none over xDS: an attempt may take as long as the call"
    if said.budget is not None and not variant.can(Feature.RETRY_BUDGET):
        yield "retry.budget", "ignored", "gRPC has none over xDS: attempts alone bounds what is made again"


def _of_headers(place: str, headers: Iterable[Header], variant: Variant) -> Iterator[tuple[str, What, str]]:
    for number, header in enumerate(headers):
        is_hidden = header.name.endswith("-bin") or header.name in _OF_TRANSPORT
        if is_hidden and not variant.can(Feature.EVERY_HEADER):
            why = f"gRPC shows its router no {header.name}: the call is as one without it"
            yield f"{place}[{number}]", "ignored", why
        elif header.kind in ("present", "absent") and not variant.can(Feature.EMPTY_HEADER):
            yield f"{place}[{number}]", "equivalent", f"where {header.name} is empty the call is as one without it"
