"""What a route policy's rule does with a call beside leading it somewhere, for people."""

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from meshwarden.controlplane.policy.traffic import Change, Fault, Retry, Route, Rule


class Told(NamedTuple):
    """One thing.

    Attributes:
        stage: what it is about: "timeout", "retry", "fault", "mirror" or "headers".
        field: where it stands in the policy.
        text: what it says.
    """

    stage: str
    field: str
    text: str


def told(said: Route, rule: Rule, path: str, verb: str, headers: dict[str, str]) -> Iterator[Told]:
    """What the rule that decides on a call does with it; nothing where no policy's rule does."""
    if rule.index < 0:
        return
    place = f"spec.rules[{rule.index}]"
    if rule.timeout is not None:
        yield Told(
            "timeout", f"{place}.timeout", f"ends after {_span(rule.timeout)}, if its caller's deadline is later"
        )
    if rule.retry is not None:
        if said.is_idempotent(path, verb):
            yield Told("retry", f"{place}.retry", _retry(rule.retry))
        else:
            text = "not made again once a server may have seen it: spec.idempotent does not name its method"
            yield Told("retry", "spec.idempotent", text)
    if rule.fault is not None and all(header.fits(headers) for header in rule.fault.headers):
        yield Told("fault", f"{place}.fault", _fault(rule.fault))
    if rule.mirror is not None:
        to = str(rule.mirror.service) if rule.mirror.service != said.service else f"version {rule.mirror.version}"
        yield Told(
            "mirror", f"{place}.mirror", f"a copy of {rule.mirror.percent:g}% goes to {to}, if an Envoy makes the call"
        )
    for name, change in (("requestHeaders", rule.request), ("responseHeaders", rule.response)):
        if change:
            yield Told("headers", f"{place}.{name}", f"{_change(change)}, if an Envoy makes the call")


def _fault(fault: Fault) -> str:
    parts = []
    if fault.delay is not None:
        parts.append(f"{fault.delay.percent:g}% wait {_span(fault.delay.span)} first")
    if fault.abort is not None:
        parts.append(f"{fault.abort.percent:g}% end with {fault.abort.code or fault.abort.status} on purpose")
    return "; ".join(parts)


def _change(change: Change) -> str:
    parts = (("sets", [name for name, _ in change.put]), ("adds", [name for name, _ in change.add]))
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in (*parts, ("removes", change.remove)) if names)


def _retry(retry: Retry) -> str:
    codes = ", ".join([*retry.statuses, *map(str, retry.codes)])
    often = "once" if retry.attempts == 1 else f"up to {retry.attempts} times"
    text = f"made again {often} after {codes}, {_span(retry.base)} to {_span(retry.longest)} later"
    if retry.per_try is not None:
        text += f"; each attempt may take {_span(retry.per_try)}"
    if retry.budget is not None:
        text += f"; at most {retry.budget.percent:g}% of the calls under way, or {retry.budget.least}"
    return text


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"
