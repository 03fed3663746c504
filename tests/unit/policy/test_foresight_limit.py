"""What a replay predicts of limits is what the SDK's own limiters then do: generated changes, on a clock of their own.

One server has the whole of each limit, and calls come within their minutes as chance has it. `make soak` makes two
hundred changes, of another seed each time.
"""

import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf import json_format

from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.foresight.replay import Replay, Seen
from meshwarden.controlplane.policy.foresight.replay_limit import LimitReplay, Minute, counted, policies_of
from meshwarden.controlplane.policy.foresight.verdict import Judge
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.sdk.quota.limit import Limiter
from meshwarden.v1 import resources_pb2
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.preview_service_pb2 import ReplayedCalls

CHANGES = int(os.environ.get("MESHWARDEN_FORESIGHT", "200"))
SEED = int(os.environ.get("MESHWARDEN_SEED", "6")) or random.SystemRandom().randrange(1, 2**31)
ORDERS, SERVED = "platform/orders", Name("platform", "orders")
TENANTS, METHODS = ("acme", "globex", "initech"), ("/s.O/Get", "/s.O/Put")
BEGIN_S = 1_764_000_000 // 60 * 60
EVERYONE = [{"tenant": tenant, "service": "*"} for tenant in TENANTS]


class Call(NamedTuple):
    """A call: when, by which tenant's service, of which method."""

    at_s: float
    tenant: str
    method: str


def made(kind: str, name: str, spec: dict[str, Any], tenant: str = "platform") -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


class Made:
    """What chance makes up."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def change(self) -> list[Change]:
        """Some of: the limits of one policy, of another, and who may call."""
        found = [self._limits("much")] if self.rng.random() < 0.8 else []
        if not found or self.rng.random() < 0.4:
            found.append(self._limits("more"))
        if self.rng.random() < 0.3:
            found.append(self._access())
        return found

    def _limits(self, name: str) -> Change:
        if self.rng.random() < 0.15:
            return Change(Key("RatePolicy", "platform", name), None)
        tenants = [*self.rng.sample(TENANTS, self.rng.randrange(3)), "*"][: self.rng.randint(1, 3)]
        limits = [{"tenant": tenant, **self._rate()} for tenant in tenants]
        shadow = {"shadow": True} if self.rng.random() < 0.1 else {}
        return made("RatePolicy", name, {"service": "orders", "limits": limits, **shadow})

    def _rate(self) -> dict[str, Any]:
        of = {"requests": self.rng.choice([1, 2, 5, 10]), "per": self.rng.choice(["1s", "10s", "60s"])}
        return of | ({"burst": self.rng.choice([1, 5, 40])} if self.rng.random() < 0.7 else {})

    def _access(self) -> Change:
        rule = {"from": self.rng.sample(EVERYONE, self.rng.randint(1, 3))}
        if self.rng.random() < 0.3:
            rule["methods"] = [self.rng.choice(METHODS)]
        return made("AccessPolicy", "orders", {"service": "orders", "allow": [rule]})

    def calls(self) -> list[Call]:
        """Of each tenant in each of some minutes few or many, spread or all at once."""
        found = []
        for minute in sorted(self.rng.sample(range(8), self.rng.randint(1, 6))):
            for tenant in TENANTS:
                count = self.rng.choice([0, 0, 1, 5, 60, 200])
                begin, span = self.rng.choice([(0.0, 60.0), (self.rng.uniform(0, 50), 5.0)])
                for _ in range(count):
                    at_s = BEGIN_S + 60 * minute + begin + self.rng.uniform(0, span)
                    found.append(Call(at_s, tenant, self.rng.choice(METHODS)))
        return sorted(found)


def limiters(mesh: Mesh) -> list[tuple[PolicyLimits, Limiter]]:
    """Those of a server that has the whole of each limit, in the order in which calls are held against them."""
    limits, found = compile_scope(mesh, "server/platform/orders/grpc").limits, []
    for said in limits.policies if limits is not None else ():
        found.append((said, Limiter()))
        found[-1][1].update(said, BEGIN_S)
    return found


def is_let_in(judge: Judge, call: Call) -> bool:
    caller = Name(call.tenant, "web")
    return judge.access(SERVED).find(caller, call.method, "POST", "", {}) is not None


def refused(mesh: Mesh, calls: Sequence[Call]) -> dict[Call, str]:
    """Which calls a server refuses by its limits, and by which policy's."""
    judge, engines, found = Judge(mesh), limiters(mesh), dict[Call, str]()
    for call in calls:
        if not is_let_in(judge, call):
            continue
        taken: list[Limiter] = []
        for said, engine in engines:
            if not engine.take(call.tenant, call.method, 1, call.at_s).allowed and not said.spec.shadow:
                found[call] = said.policy
                for other in taken:
                    other.give_back(call.tenant, call.method, 1, call.at_s)
                break
            taken.append(engine)
    return found


def replayed(before: Mesh, changes: list[Change], calls: Sequence[Call], now: dict[Call, str]) -> list[ReplayedCalls]:
    """What is foretold of the calls, by what a ledger has of them; `now`: those that were refused."""
    judge = Judge(before)
    kinds, minutes = Counter[tuple[str, str]](), Counter[tuple[int, str, str]]()
    limited = Counter[tuple[int, str, str]]()
    for call in calls:
        minute = int(call.at_s) // 60 * 60, call.tenant, call.method
        kinds[call.tenant, call.method] += 1
        minutes[minute] += 1
        limited[minute] += call in now
    after = before.fork()
    impact = after.apply(changes)
    judges = (judge, Judge(after))
    policies = policies_of(judges, impact)
    replay = Replay(*judges, frozenset(impact.services | impact.servers), counted(judges, policies))
    replay.add([Seen(f"{tenant}/web", ORDERS, method, 0, count) for (tenant, method), count in kinds.items()])
    found = LimitReplay(*judges, policies, replay.passed)
    found.add(
        Minute(at_s, "", f"{tenant}/web", ORDERS, method, 0, count, limited[at_s, tenant, method])
        for (at_s, tenant, method), count in sorted(minutes.items())
    )
    return list(found.found())


def base() -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply(
        [
            made("Service", "orders", {"protocol": "GRPC", "exportTo": ["*"]}),
            *(made("Service", "web", {"protocol": "GRPC"}, tenant) for tenant in TENANTS),
            made("AccessPolicy", "orders", {"service": "orders", "allow": [{"from": EVERYONE}]}),
        ]
    )
    return mesh


def test_limits_do_what_was_predicted() -> None:
    rng, mesh, counts = random.Random(SEED), base(), Counter[str]()
    chance = Made(rng)
    for number in range(CHANGES):
        changes, calls = chance.change(), chance.calls()
        now = refused(mesh, calls)
        told = replayed(mesh, changes, calls, now)
        mesh = mesh.fork()
        mesh.apply(changes)
        then = refused(mesh, calls)
        where = f"change {number} of seed {SEED}: {changes}: {told}"
        judge = Judge(mesh)
        still = (call for call in now if is_let_in(judge, call))
        newly = Counter(call.tenant for call in then) - Counter(call.tenant for call in still)
        sure, unsure = Counter[str](), set[str]()
        for one in told:
            tenant = getattr(one, "from").partition("/")[0]
            if one.outcome == ReplayedCalls.LIMITED:
                sure[tenant] += one.calls
            else:
                unsure.add(tenant)
        for tenant, least in sure.items():
            more = newly[tenant]
            assert more >= least, where
            counts["limited"] += 1
        for tenant in {*TENANTS} - unsure - sure.keys() if "*" not in unsure | sure.keys() else ():
            assert not newly[tenant], where
            counts["not limited"] += 1
        counts["undecidable"] += len(unsure)
    print(f"seed {SEED}: {dict(counts)}")
    assert counts["limited"], counts
    assert counts["not limited"] > CHANGES, counts
