"""What an access policy must hold by itself, beside the schema's rules."""

from collections.abc import Iterator
from typing import Final

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.rate import is_zone
from meshwarden.v1.resources_pb2 import AccessPolicySpec, AccessRule, TimeWindow

# gRPC refuses a configuration that names the first of these, and no data plane sees the others as they were sent.
_UNSEEN: Final = ("grpc-", "proxy-")
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
_PROVED: Final = frozenset({"x-forwarded-client-cert", "host"})


def rules_of(spec: AccessPolicySpec) -> Iterator[tuple[str, AccessRule]]:
    """The rules of a policy, each with its path."""
    for name in ("allow", "deny"):
        for number, rule in enumerate(getattr(spec, name)):
            yield f"spec.{name}[{number}]", rule


def access_faults(spec: AccessPolicySpec) -> Iterator[FieldFault]:
    """What is wrong with it."""
    if not spec.allow and not spec.deny:
        yield FieldFault("spec.allow", "is required; or give deny")
    for path, rule in rules_of(spec):
        for number, header in enumerate(rule.headers):
            if reason := _unmatched(header.name):
                yield FieldFault(f"{path}.headers[{number}].name", f"{header.name} {reason}")
        if rule.HasField("during"):
            yield from _window_faults(f"{path}.during", rule.during)


def _window_faults(path: str, window: TimeWindow) -> Iterator[FieldFault]:
    has_from, has_until = window.HasField("from"), window.HasField("until")
    if not has_from and not has_until and not window.weekly:
        yield FieldFault(path, "is always: give from, until or weekly, or leave it out")
    if has_from and has_until and window.until.ToNanoseconds() <= getattr(window, "from").ToNanoseconds():
        yield FieldFault(f"{path}.until", "is not after from: the rule would never hold")
    if window.time_zone and not window.weekly:
        yield FieldFault(f"{path}.timeZone", "only with weekly: write the offset into from and until")
    elif window.time_zone and not is_zone(window.time_zone):
        yield FieldFault(f"{path}.timeZone", f"{window.time_zone} is no time zone: an IANA name, as Europe/Berlin")
    for number, hours in enumerate(window.weekly):
        if hours.until and hours.until == getattr(hours, "from"):
            yield FieldFault(f"{path}.weekly[{number}].until", "is when they begin: for the whole day leave both out")


def _unmatched(name: str) -> str:
    """Why no rule can be about a header; empty if one can."""
    if name.endswith("-bin"):
        return "is binary metadata, which no data plane compares"
    if name.startswith(_UNSEEN) or name in _HOP_BY_HOP:
        return "belongs to the connection or to gRPC itself: data planes don't compare it"
    if name in _PROVED:
        return "says who calls or is called: `from` and `service` say that, by what is proved"
    return ""
