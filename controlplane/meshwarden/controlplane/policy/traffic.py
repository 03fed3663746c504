"""What becomes of a service's calls: where they go, how long they may take, and which are made again."""

import functools
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from meshwarden.controlplane.policy.neutral import Caller, Foreign, ForeignCaller, Header, Method, Name

HTTP_CODES: Final = 400
"""From here on a code is a status of HTTP."""


@dataclass(frozen=True)
class Retry:
    """Which calls are made again, when, and how often.

    Attributes:
        statuses: of gRPC, "UNAVAILABLE", in order.
        codes: of HTTP, in order.
        attempts: how often at most.
        per_try: how long each attempt may take; None for as long as the call.
        base: about how long the first waits; each further one twice as long as the one before.
        longest: no wait is longer.
        budget: how many there may be; None if the rule doesn't say it.
    """

    statuses: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    attempts: int = 1
    per_try: timedelta | None = None
    base: timedelta = timedelta(milliseconds=25)
    longest: timedelta = timedelta(milliseconds=250)
    budget: "Budget | None" = None


@dataclass(frozen=True)
class Budget:
    """How many of the calls that are under way to a version may be repetitions.

    Attributes:
        percent: of them, from 0 to 100.
        least: so many may be in any case.
    """

    percent: float = 10.0
    least: int = 3


@dataclass(frozen=True)
class Mirror:
    """Where a copy of some calls goes: another service, or with no other `service` a version of the same."""

    service: Name
    version: str = ""
    percent: float = 100.0


@dataclass(frozen=True)
class Delay:
    """So many of the calls, in per cent, wait so long."""

    span: timedelta
    percent: float


@dataclass(frozen=True)
class Abort:
    """So many of the calls, in per cent, end with a status of gRPC, "UNAVAILABLE", or of HTTP, if that is not 0."""

    status: str
    code: int
    percent: float


@dataclass(frozen=True)
class Fault:
    """What goes wrong on purpose with calls that have all of some headers."""

    delay: Delay | None = None
    abort: Abort | None = None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True)
class Change:
    """What becomes of headers: `(name, value)` that take the place of others or come beside them, and names that go."""

    put: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.add or self.remove)


@dataclass(frozen=True)
class Rule:
    """What becomes of some calls; no `methods`, no `callers` mean all.

    Attributes:
        split: where they go, `((version, weight), …)` with a positive sum; the version "" is every version alike.
        methods: which they are.
        headers: all that they must have.
        callers: whose they are.
        timeout: how long each may take; None for as long as its caller waits.
        retry: whether and when it is made again, if it is idempotent.
        index: of the rule in its policy; -1 for what holds where no rule fits.
        mirror: where a copy of it goes.
        fault: what goes wrong with it.
        request: what becomes of its headers.
        response: what becomes of those of its answer.
    """

    split: tuple[tuple[str, int], ...]
    methods: tuple[Method, ...] = ()
    headers: tuple[Header, ...] = ()
    index: int = -1
    callers: tuple[Caller | ForeignCaller, ...] = ()
    timeout: timedelta | None = None
    retry: Retry | None = None
    mirror: Mirror | None = None
    fault: Fault | None = None
    request: Change = Change()
    response: Change = Change()

    def is_for(self, caller: Name | Foreign) -> bool:
        """Whether a caller's calls are meant; a name without a service is a service that no rule names."""
        return not self.callers or any(one.fits(caller) for one in self.callers)

    def fits(self, caller: Name | Foreign, path: str, verb: str, headers: dict[str, str]) -> bool:
        """Whether the rule is about the call."""
        return (
            self.is_for(caller)
            and (not self.methods or any(method.fits(path, verb) for method in self.methods))
            and all(header.fits(headers) for header in self.headers)
        )


@dataclass(frozen=True)
class Route:
    """What becomes of the calls of a service; the last rule fits every call.

    Attributes:
        service: that is called.
        rules: in order; the first that fits decides.
        policy: where that stands; None if nowhere.
        idempotent: the methods that may be made again.
    """

    service: Name
    rules: tuple[Rule, ...]
    policy: Name | None = None
    idempotent: tuple[Method, ...] = ()

    def find(self, caller: Name | Foreign, path: str, verb: str, headers: dict[str, str]) -> Rule:
        """The first rule that fits."""
        return next(rule for rule in self.rules if rule.fits(caller, path, verb, headers))

    def is_idempotent(self, path: str, verb: str) -> bool:
        """Whether a call may be made again."""
        return any(method.fits(path, verb) for method in self.idempotent)

    def of_call(self, rule: Rule, path: str, verb: str, headers: dict[str, str]) -> Rule:
        """What of the rule that decides on a call is for that: of a retry and a fault, whether they are."""
        if rule.retry is not None and not self.is_idempotent(path, verb):
            rule = replace(rule, retry=None)
        if rule.fault is not None:
            is_faulty = all(header.fits(headers) for header in rule.fault.headers)
            rule = replace(rule, fault=replace(rule.fault, headers=()) if is_faulty else None)
        return rule

    def rules_of(self, caller: Name) -> tuple[Rule, ...]:
        """The rules that are about the calls of a caller."""
        return tuple(rule for rule in self.rules if rule.is_for(caller)) if self.names_callers else self.rules

    @functools.cached_property
    def budget(self) -> Budget:
        """How many calls may be made again, which all rules that name it name alike."""
        named = (rule.retry.budget for rule in self.rules if rule.retry is not None)
        return next((budget for budget in named if budget is not None), Budget())

    @functools.cached_property
    def names_callers(self) -> bool:
        """Whether it is another thing for some callers."""
        return any(rule.callers for rule in self.rules)

    @functools.cached_property
    def has_timeout(self) -> bool:
        """Whether some call may take so long and no longer."""
        return any(rule.timeout is not None for rule in self.rules)
