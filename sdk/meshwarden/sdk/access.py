"""Who may call a server of the SDK: what gRPC's own RBAC decides where there is one, from the policies as they are.

The rules about a caller are found by its SPIFFE ID, at once however many rules there are; what is then gone through are
its own. What they say of a method is remembered, unless headers matter.

A method is a gRPC call's, which is a POST.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from meshwarden.v1 import node_service_pb2, resources_pb2

_MAX_CALLERS: Final = 4096
_MAX_METHODS: Final = 1024
_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_RULE: Final = re.compile(rf"{_LABEL}/{_LABEL}#(?:allow|deny)\[[0-9]{{1,4}}\]")
Metadata = Iterable[tuple[str, str | bytes]]


class Verdict(NamedTuple):
    """What the policies say of a call.

    Attributes:
        allowed: whether it may go on.
        rule: which rule says so, "platform/orders#deny[0]"; empty if none does, and it may not.
        dry_run: the rule in dry run by which the opposite would become of it; empty if there is none.
    """

    allowed: bool
    rule: str = ""
    dry_run: str = ""


def is_rule(text: str) -> bool:
    """Whether a text names a rule of an access policy."""
    return _RULE.fullmatch(text) is not None


class Access:
    """The access policies of a service. Safe to share between threads."""

    def __init__(self, said: node_service_pb2.ServerAccess, home: str) -> None:
        """Reads the policies; `home` is the trust domain of callers that they name by tenant and service."""
        self._home = home
        # By the SPIFFE ID, or for a whole tenant or trust domain by what those start with and a star; in their order.
        self._rules: dict[str, list[tuple[int, _Rule]]] = {}
        for number, (who, rule) in enumerate(_rules(said, home)):
            self._rules.setdefault(who, []).append((number, rule))
        self._callers: dict[str, _Caller] = {}

    def decide(self, caller: str, method: str, metadata: Metadata) -> Verdict:
        """What becomes of a call.

        Args:
            caller: the SPIFFE ID that the certificate proves.
            method: "/package.Service/Method".
            metadata: what the caller sent; several values of one name count as one, joined by commas.
        """
        known = self._callers.get(caller)
        if known is None:
            known = self._read(caller)
        verdict = known.verdicts.get(method)
        return verdict if verdict is not None else known.decide(method, metadata)

    def _read(self, caller: str) -> "_Caller":
        found = sorted([*self._rules.get(caller, ()), *self._rules.get(_whole(caller, self._home), ())])
        if len(self._callers) >= _MAX_CALLERS:
            self._callers.clear()
        made = self._callers[caller] = _Caller([rule for _, rule in found])
        return made


class _Rule(NamedTuple):
    place: str
    allows: bool
    is_dry: bool
    methods: tuple[tuple[str, bool], ...]
    headers: tuple[tuple[str, str, str], ...]

    def is_of(self, method: str) -> bool:
        return any(method.startswith(path) if is_prefix else method == path for path, is_prefix in self.methods)

    def fits(self, sent: Mapping[str, str]) -> bool:
        return all(_fits(kind, value, sent.get(name)) for name, kind, value in self.headers)


class _Caller:
    """What one caller may call."""

    __slots__ = ("_rules", "verdicts")

    def __init__(self, rules: list[_Rule]) -> None:
        self._rules = (*(rule for rule in rules if not rule.allows), *(rule for rule in rules if rule.allows))
        self.verdicts: dict[str, Verdict] = {}

    def decide(self, method: str, metadata: Metadata) -> Verdict:
        # Those that deny come first: one of them is enough.
        rules = [rule for rule in self._rules if rule.is_of(method)]
        sent = _sent(metadata) if any(rule.headers for rule in rules) else {}
        fitting = [rule for rule in rules if rule.fits(sent)]
        found = next((rule for rule in fitting if not rule.is_dry), None)
        allowed = found is not None and found.allows
        # If those in dry run were enforced the first of all would say.
        dry_run = fitting[0].place if fitting and fitting[0].allows != allowed else ""
        verdict = Verdict(allowed, found.place if found is not None else "", dry_run)
        if not any(rule.headers for rule in rules) and len(self.verdicts) < _MAX_METHODS:
            self.verdicts[method] = verdict
        return verdict


def _rules(said: node_service_pb2.ServerAccess, home: str) -> Iterator[tuple[str, _Rule]]:
    """Every rule once for each of its callers: (by what that is known, the rule)."""
    for policy in said.policies:
        for field in ("deny", "allow"):
            for number, rule in enumerate(getattr(policy.spec, field)):
                methods = tuple(_methods(rule.methods))
                headers = tuple((header.name, *_condition(header)) for header in rule.headers)
                place, is_dry = f"{policy.policy}#{field}[{number}]", policy.spec.dry_run
                made = _Rule(place, field == "allow", is_dry, methods, headers)
                for caller in getattr(rule, "from"):
                    yield _known_by(caller, home), made


def _known_by(caller: resources_pb2.Caller, home: str) -> str:
    if caller.trust_domain:
        return f"spiffe://{caller.trust_domain}/*"
    return caller.spiffe_id or f"spiffe://{home}/tenant/{caller.tenant}/service/{caller.service}"


def _whole(caller: str, home: str) -> str:
    """By what the whole tenant or trust domain of a caller is known."""
    trust_domain, *path = caller.removeprefix("spiffe://").split("/")
    if trust_domain != home:
        return f"spiffe://{trust_domain}/*"
    if len(path) == 4 and (path[0], path[2]) == ("tenant", "service") and path[3]:
        return f"{caller.removesuffix(path[3])}*"
    return ""


def _methods(said: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The patterns that a gRPC call can fit: (the path, whether anything may follow)."""
    for text in said or ("/*",):
        verb, _, path = text.rpartition(" ")
        if verb in ("", "POST"):
            yield path.removesuffix("*"), path.endswith("*")


def _condition(header: resources_pb2.HeaderMatch) -> tuple[str, str]:
    kind = header.WhichOneof("value") or ""
    if kind == "present":
        return ("present" if header.present else "absent", "")
    return kind, getattr(header, kind)


def _fits(kind: str, value: str, sent: str | None) -> bool:
    if sent is None or kind == "absent":
        return sent is None and kind == "absent"
    if kind == "exact":
        return sent == value
    return kind == "present" or sent.startswith(value)


def _sent(metadata: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in metadata:
        if isinstance(value, str):
            found[name] = f"{found[name]},{value}" if name in found else value
    return found
