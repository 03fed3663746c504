"""Who may call a service, in no data plane's dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from meshwarden.controlplane.policy.neutral import ANY_METHOD, AnyCaller, Foreign, Header, Method, Name
from meshwarden.controlplane.policy.window import Window

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Grant:
    """One permission, or one prohibition: calls of `caller`, of any of `methods`, with all of `headers`.

    It holds `during` a time, or always; `policy`, `field` ("allow" or "deny") and `rule` say where that stands.
    """

    caller: AnyCaller
    methods: tuple[Method, ...]
    policy: Name
    rule: int
    headers: tuple[Header, ...] = ()
    field: Literal["allow", "deny"] = "allow"
    during: Window | None = None

    @property
    def place(self) -> str:
        """Where it stands, "platform/orders#deny[0]"."""
        return f"{self.policy}#{self.field}[{self.rule}]"

    @property
    def is_any(self) -> bool:
        """Whether all calls of the caller are meant."""
        return ANY_METHOD in self.methods and not self.headers

    def fits(self, caller: Name | Foreign, path: str, verb: str, headers: Mapping[str, str]) -> bool:
        """Whether a call is meant."""
        return (
            self.caller.fits(caller)
            and any(method.fits(path, verb) for method in self.methods)
            and all(header.fits(headers) for header in self.headers)
        )


@dataclass(frozen=True)
class Access:
    """Who may call a service: whom no grant fits may not, nor whom a denial fits, nor who is revoked.

    Attributes:
        service: that is called.
        grants: what allows.
        revoked: callers that are refused whatever certificate they show.
        serials: certificates that are refused: (number in hexadecimal, whose it must be, or None for anybody's).
        denials: what denies in spite of a grant.
        shadow: how it would be if policies in dry run were enforced; None if there is none.
    """

    service: Name
    grants: tuple[Grant, ...] = ()
    revoked: tuple[Name | Foreign, ...] = ()
    serials: tuple[tuple[str, Name | Foreign | None], ...] = ()
    denials: tuple[Grant, ...] = ()
    shadow: "Access | None" = None

    def at(self, at_s: float | None) -> "Access":
        """What of it holds at a moment, in seconds since 1970.

        Of a moment that nobody knows, None, that is what never lets in too much: what is allowed for a time is not, and
        what is denied for a time is.
        """
        grants = (one for one in self.grants if one.during is None or (at_s is not None and one.during.holds(at_s)))
        denials = (one for one in self.denials if one.during is None or at_s is None or one.during.holds(at_s))
        shadow = self.shadow.at(at_s) if self.shadow is not None else None
        return replace(self, grants=tuple(grants), denials=tuple(denials), shadow=shadow)

    def widest(self) -> "Access":
        """As if it were always the time that lets in most: what `at` never exceeds."""
        return replace(self, denials=tuple(one for one in self.denials if one.during is None))

    @property
    def is_timed(self) -> bool:
        """Whether any of it holds for a time alone."""
        return any(one.during is not None for one in self.rules)

    def turn(self, at_s: float) -> float | None:
        """The next moment at which something else may hold; None if nothing will."""
        of_rules = (one.during.turn(at_s) for one in self.rules if one.during is not None)
        of_shadow = self.shadow.turn(at_s) if self.shadow is not None else None
        return min((moment for moment in (*of_rules, of_shadow) if moment is not None), default=None)

    @property
    def rules(self) -> tuple[Grant, ...]:
        """All that it says of calls."""
        return (*self.grants, *self.denials)

    def is_revoked(self, caller: Name | Foreign, serial: str = "") -> bool:
        """Whether a caller, or its certificate of that number, is refused whatever policies say."""
        return caller in self.revoked or (serial, None) in self.serials or (serial, caller) in self.serials

    def find(
        self,
        caller: Name | Foreign,
        path: str,
        verb: str = "",
        serial: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Grant | None:
        """The first grant that allows the call, by a certificate of that number; None if it is denied."""
        if self.is_revoked(caller, serial) or self.find_denial(caller, path, verb, headers) is not None:
            return None
        return next((grant for grant in self.grants if grant.fits(caller, path, verb, headers)), None)

    def find_dry_run(
        self, caller: Name | Foreign, path: str, verb: str = "", headers: Mapping[str, str] = NO_HEADERS
    ) -> Grant | None:
        """The rule in dry run by which the opposite would become of the call; None if there is none."""
        if self.shadow is None:
            return None
        now, then = (one.find(caller, path, verb, headers=headers) for one in (self, self.shadow))
        if (now is None) == (then is None):
            return None
        return then or self.shadow.find_denial(caller, path, verb, headers)

    def find_denial(
        self, caller: Name | Foreign, path: str, verb: str = "", headers: Mapping[str, str] = NO_HEADERS
    ) -> Grant | None:
        """The first denial of the call; None if there is none."""
        return next((denial for denial in self.denials if denial.fits(caller, path, verb, headers)), None)
