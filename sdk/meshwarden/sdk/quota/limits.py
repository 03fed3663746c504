"""The limits of one server: a call must pass every policy, whatever its scope; and what a refused caller is told."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.backpressure import criticality, status_detail
from meshwarden.sdk.backpressure.concurrency import Concurrency, Place
from meshwarden.sdk.backpressure.overload import BUSY, NEVER, RETRY_S
from meshwarden.sdk.backpressure.room import CONCURRENCY, MOST_CALLS, Rooms
from meshwarden.sdk.quota import cost, rate_limit_field
from meshwarden.sdk.quota.admission import FREE, Admission, Engine, Taken
from meshwarden.sdk.quota.chunk import WAIT_S
from meshwarden.sdk.quota.limit import ANY_TENANT, Decision, Limiter, retry_after
from meshwarden.sdk.quota.part import find_part, key_of
from meshwarden.sdk.quota.share import ShareLink
from meshwarden.sdk.quota.slot import Slots
from meshwarden.sdk.quota.unit import BYTES, CONCURRENT, COST, REQUESTS, Unit, amount_of, unit_of
from meshwarden.v1 import node_service_pb2
from meshwarden.v1.resources_pb2 import MethodLimit, RateLimit, RatePolicySpec

POLICY_KEY: Final = "x-meshwarden-policy"
MAX_WAITING: Final = 64
"""How many calls wait at once for amounts that are on their way; in a quarter of a server's threads at most."""
Call: TypeAlias = "tuple[str, str, Iterable[tuple[str, str | bytes]]]"
"""The arguments of `Limits.admit`."""
_DRAFTS_UNITS: Final[Mapping[Unit, str]] = {
    REQUESTS: "requests",
    BYTES: "content-bytes",
    CONCURRENT: "concurrent-requests",
}
"""What the RateLimit fields call what we count; costs they have no unit for."""
_PERIODS_S: Final = {RatePolicySpec.HOUR: 3600.0, RatePolicySpec.DAY: 86_400.0, RatePolicySpec.MONTH: 30 * 86_400.0}
_EACH: Final = {RatePolicySpec.HOUR: "an hour", RatePolicySpec.DAY: "a day", RatePolicySpec.MONTH: "a month"}
_LEVELS: Final = {
    "total": "all callers together",
    "service": "tenant {tenant} at this service",
    "method": "tenant {tenant} at {method}",
    "class": "tenant {tenant} at its class {method}",
}
_EXHAUSTED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
_CODE: Final = int(_EXHAUSTED.value[0])
_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE
_chance: Final = random.SystemRandom().random


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a refused caller is told.

    Attributes:
        code: the status: UNAVAILABLE where another server may have room.
        message: of the status.
        headers: the RateLimit fields. They go before the status: the draft forbids them in trailers.
        trailing: when to try again, the policy, and google.rpc's details.
    """

    code: grpc.StatusCode
    message: str
    headers: tuple[tuple[str, str], ...]
    trailing: tuple[tuple[str, str | bytes], ...]


class _Held(NamedTuple):
    """The policies in force, in the order in which a call is held against them.

    Attributes:
        engines: of each.
        reserves: what each takes of a call that declares nothing.
        costs: the numbers of those that count costs.
        sizes: the numbers of those that count bytes.
        slots: the engines of those that count calls at once.
    """

    engines: tuple[Engine, ...] = ()
    reserves: tuple[int, ...] = ()
    costs: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    slots: tuple[Engine, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether all is known when a call is let in."""
        return not (self.costs or self.sizes or self.slots)

    @property
    def alone(self) -> Engine | None:
        """The engine of the one policy in force, if it counts calls: then one look at it is all."""
        return self.engines[0] if len(self.engines) == 1 and self.is_settled else None

    @classmethod
    def of(cls, policies: Sequence[node_service_pb2.PolicyLimits], engines: Mapping[str, Engine]) -> "_Held":
        """Those of a server, by name of the policy."""
        units = [unit_of(said.spec) for said in policies]
        found = tuple(engines[said.policy] for said in policies)
        return cls(
            found,
            tuple(max(1, said.spec.reserve) for said in policies),
            tuple(number for number, unit in enumerate(units) if unit == COST),
            tuple(number for number, unit in enumerate(units) if unit == BYTES),
            tuple(engine for engine, unit in zip(found, units, strict=True) if unit == CONCURRENT),
        )

    def amounts(self, metadata: Iterable[tuple[str, str | bytes]]) -> Sequence[int]:
        """What each takes of a call with such metadata; none is let in for nothing."""
        declared = cost.find_declared(metadata)
        if declared is None:
            return self.reserves
        # No less than the policy reserves: else callers would set the price where handlers report none.
        return [
            max(declared, reserve) if number in self.costs else reserve for number, reserve in enumerate(self.reserves)
        ]


class Limits:
    """Decides about calls. Safe to share between threads.

    Attributes:
        on: whether any policy is in force; while none is, `admit` need not be asked.
    """

    def __init__(
        self,
        link: AgentLink,
        monotonic_s: Callable[[], float],
        most_calls: int = MOST_CALLS,
        chance: Callable[[], float] = _chance,
    ) -> None:
        """Nothing is limited yet.

        Args:
            link: to the agent.
            monotonic_s: seconds of any clock that never goes back.
            most_calls: how many calls the server could serve at once and refuse one more.
            chance: from 0 to 1; see `meshwarden.sdk.backpressure.gradient`.
        """
        self.on = False
        self._link, self._monotonic_s = link, monotonic_s
        self._rooms, self._told = Rooms(most_calls, chance), False
        self._lock = threading.Lock()
        self._own: dict[str, Limiter | Slots] = {}
        self._shares: ShareLink | None = None
        self._held, self._alone = _Held(), _Held().alone
        self._specs: dict[str, RatePolicySpec] = {}
        self._waiting, self._most_waiting = 0, min(MAX_WAITING, max(1, most_calls // 4))

    def update(self, limits: node_service_pb2.ServerLimits) -> None:
        """Puts other limits in force; policies that stay keep what was spent."""
        now_s = self._monotonic_s()
        with self._lock:
            self._rooms.update(limits, now_s)
            self._tell(bool(self._rooms.all))
            policies = [said for said in limits.policies if not said.spec.HasField("adaptive")]
            shared = [said for said in policies if said.spec.scope != RatePolicySpec.POINT]
            own = {said.policy: said for said in policies if said.spec.scope == RatePolicySpec.POINT}
            self._own = {policy: self._engine(policy, said.spec) for policy, said in own.items()}
            for policy, said in own.items():
                self._own[policy].update(said, now_s)
            leases = self._shared(shared, now_s)
            self._specs = {said.policy: said.spec for said in limits.policies}
            self._held = _Held.of(policies, {**leases, **self._own})
            self._alone = None if self._rooms.all else self._held.alone
            self.on = bool(self._held.engines or self._rooms.all)

    def admit(self, tenant: str, method: str, metadata: Iterable[tuple[str, str | bytes]] = ()) -> Admission:
        """Lets a call in, if every policy does; what it then holds is to be given back by `end`, however it ends.

        Where the decision says that more is coming, `wait` has to have the last word.

        Raises:
            cost.Malformed: a policy counts costs, and what the metadata declare is none.
        """
        if not self.on:
            return FREE
        level = criticality.current()
        free = None if level is None else criticality.FREE_OF_BUCKET[level]
        if (alone := self._alone) is not None:  # most often; each line here is cold when a call comes
            decision = alone.take(tenant, method, 1, self._monotonic_s(), free)
            return FREE if decision.allowed else Admission(decision=decision)
        held, rooms = self._held, self._rooms.all
        now_s = self._monotonic_s()
        amounts = held.amounts(metadata) if held.costs else held.reserves
        for number, engine in enumerate(held.engines):
            decision = engine.take(tenant, method, amounts[number], now_s, free)
            if not decision.allowed:
                _give_back(held.engines[:number], amounts, tenant, method, now_s)
                return Admission(decision=decision)
        places: list[tuple[Concurrency, Place]] = []
        # Last: a call that is over its limit is no sign of a server that has too much to do.
        for policy, room in rooms:
            place = room.enter(tenant, method, level or criticality.DEFAULT, now_s)
            if place is None:
                _give_back(held.engines, amounts, tenant, method, now_s)
                Admission(tenant, method, self._monotonic_s, places=places).end()
                return Admission(decision=Decision(False, RETRY_S, CONCURRENCY, policy))
            places.append((room, place))
        if held.is_settled and not places:
            return FREE
        costs, sizes = (
            [Taken(held.engines[number], amounts[number], now_s) for number in numbers]
            for numbers in (held.costs, held.sizes)
        )
        admission = Admission(
            tenant, method, self._monotonic_s, costs=costs, sizes=sizes, slots=held.slots, places=places
        )
        if costs:
            cost.serving.set(admission)
        return admission

    def wait(self, told: Admission, call: Call, left_s: float | None) -> Admission:
        """Waits, if `admit` has said of a call that more is coming, and returns what came of it.

        Args:
            told: what `admit` has said.
            call: the call.
            left_s: how long its caller will wait; None: for ever.
        """
        waits = self._waits(told, call, left_s)
        try:
            while True:
                arrived, wait_s = next(waits)
                futures.wait((arrived,), wait_s)
        except StopIteration as done:
            found: Admission = done.value
            return found

    async def wait_aio(self, told: Admission, call: Call, left_s: float | None) -> Admission:
        """The same as `wait` for a server of grpc.aio."""
        with contextlib.closing(self._waits(told, call, left_s)) as waits:
            try:
                while True:
                    arrived, wait_s = next(waits)
                    await asyncio.wait((asyncio.wrap_future(arrived),), timeout=wait_s)
            except StopIteration as done:
                found: Admission = done.value
                return found

    def _waits(
        self, told: Admission, call: Call, left_s: float | None
    ) -> Generator[tuple["futures.Future[None]", float], None, Admission]:
        """Says what to wait for, and for how many seconds, as often as there is something."""
        now_s = self._monotonic_s()
        # Half of what the caller has is left to the call itself.
        ends_s = now_s + (WAIT_S if left_s is None else min(WAIT_S, left_s / 2))
        with self._lock:
            has_place = self._waiting < self._most_waiting
            self._waiting += has_place
        try:
            while (coming := told.decision.coming) is not None:
                wait_s = min(ends_s, coming.until_s) - now_s
                if not has_place or wait_s <= 0:
                    return Admission(decision=coming.refuse())
                yield coming.arrived, wait_s
                told, now_s = self.admit(*call), self._monotonic_s()
            return told
        finally:
            with self._lock:
                self._waiting -= has_place

    def refusal(self, decision: Decision, tenant: str, method: str) -> Refusal:
        """What a caller is told whose call was not let pass."""
        if decision.level == CONCURRENCY:
            return _busy(decision, tenant)
        policy, most = decision.policy, decision.most
        part = self._part(decision, tenant, method)
        if part is not None and part.call_class:
            decision, method = replace(decision, level="class"), part.call_class
        level = _LEVELS.get(decision.level, "tenant {tenant}").format(tenant=tenant, method=method)
        if most is None:
            wait = retry_after(decision)
            message = f"rate policy {policy} limits {level}: try again in {wait} s"
            when: tuple[str, str] = ("retry-after", wait)
            after_s: float | None = decision.retry_after_s
        else:
            each = _EACH.get(self._specs.get(policy, RatePolicySpec()).period, "at once")
            message = f"rate policy {policy} limits {level} to {most:.0f} {each}: a call that costs more never passes"
            when, after_s = NEVER, None
        details = status_detail.limited(_CODE, message, after_s, tenant, f"RatePolicy {policy}: {level}")
        trailing = (
            when,
            (POLICY_KEY, f"RatePolicy {policy}"),
            (status_detail.KEY, details),
        )
        return Refusal(_EXHAUSTED, message, self._fields(decision, tenant, part), trailing)

    def _limit(self, decision: Decision, tenant: str) -> RateLimit | None:
        """The limit on a tenant; None if the policies have changed meanwhile."""
        by_tenant = {limit.tenant: limit for limit in self._specs.get(decision.policy, RatePolicySpec()).limits}
        return by_tenant.get(tenant) or by_tenant.get(ANY_TENANT)

    def _part(self, decision: Decision, tenant: str, method: str) -> MethodLimit | None:
        """The part of a tenant's limit that a call was refused by, if it was one."""
        limit = self._limit(decision, tenant)
        return find_part(limit.methods, method) if limit is not None and decision.level == "method" else None

    def _fields(self, decision: Decision, tenant: str, part: MethodLimit | None) -> tuple[tuple[str, str], ...]:
        """The RateLimit fields."""
        partition = "" if decision.level == "total" else tenant
        if part is not None:
            partition = rate_limit_field.partition(tenant, key_of(part))
        quota = rate_limit_field.Quota(decision.policy, decision.level, partition)
        left = (rate_limit_field.KEY, quota.field(0.0, decision.retry_after_s))
        spec = self._specs.get(decision.policy, RatePolicySpec())
        unit = _DRAFTS_UNITS.get(unit_of(spec))
        if unit is None:
            return ()
        limit: Any = part if decision.level in ("method", "class") else self._limit(decision, tenant)
        if decision.level == "total":
            limit = spec.total
        if limit is None:  # the policies have changed meanwhile
            return (left,)
        per_s = limit.per.seconds + limit.per.nanos / 1e9 or 1.0 if unit_of(spec) != CONCURRENT else None
        per_s = _PERIODS_S.get(spec.period, per_s)
        return ((rate_limit_field.POLICY_KEY, quota.policy_field(amount_of(limit), per_s, unit)), left)

    def close(self) -> None:
        """Ends the stream to the agent, if there is one."""
        with self._lock:
            self._drop_shares()
            self._tell(is_told=False)

    def _tell(self, is_told: bool) -> None:
        """Has the agent told of calls at once, or no more."""
        if is_told and not self._told:
            self._link.observe(self._rooms.states)
        elif self._told and not is_told:
            self._link.unobserve(self._rooms.states)
        self._told = is_told

    def _engine(self, policy: str, spec: RatePolicySpec) -> Limiter | Slots:
        """What a policy with scope POINT is held by: as before, if it counts the same way."""
        known, unit = self._own.get(policy), unit_of(spec)
        if known is not None and unit_of(self._specs[policy]) == unit:
            return known
        return Slots() if unit == CONCURRENT else Limiter()

    def _shared(self, said: list[node_service_pb2.PolicyLimits], now_s: float) -> Mapping[str, Engine]:
        """What holds the policies that hold across the mesh."""
        if not said:
            self._drop_shares()
            return {}
        if self._shares is None:
            self._shares = ShareLink(self._link, self._monotonic_s)
        leases = self._shares.update(said, now_s)
        self._shares.start()
        return leases

    def _drop_shares(self) -> None:
        if self._shares is not None:
            self._shares.close()
            self._shares = None


def _give_back(engines: Iterable[Engine], amounts: Iterable[int], tenant: str, method: str, now_s: float) -> None:
    """Puts back what policies took of a call that another refuses."""
    for taken, amount in zip(engines, amounts, strict=False):
        taken.give_back(tenant, method, amount, now_s)


def _busy(decision: Decision, tenant: str) -> Refusal:
    """What a caller is told whom another server of the service may serve; see `sdk.backpressure.overload`."""
    policy = f"RatePolicy {decision.policy}"
    message = (
        f"rate policy {decision.policy}: this server has as many calls as it can do with, or tenant {tenant} has its"
        f" part of them: try again in {RETRY_S} s"
    )
    level = f"{policy}: calls at once of tenant {tenant}"
    details = status_detail.limited(int(_UNAVAILABLE.value[0]), message, decision.retry_after_s, tenant, level)
    return Refusal(_UNAVAILABLE, message, (), (*BUSY, (POLICY_KEY, policy), (status_detail.KEY, details)))
