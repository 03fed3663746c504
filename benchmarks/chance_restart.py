"""How long until tenants have what they had, after a control plane was killed: in the model of `benchmarks.chance`.

It is there again two seconds later and found by the two nodes within one more, as late as that can be; the policy says
DENY, so that points whose leases have run out refuse everything meanwhile. The reference is how long it was away for
the later of the nodes.
"""

from typing import Any, Final

from benchmarks import accuracy_figures as figures
from benchmarks.accuracy_figures import Record
from benchmarks.chance import POLICY, WARM_S, WAY_S, EnvoyBuckets, World
from benchmarks.result import Case
from meshwarden.controlplane.quota.lease import Usage
from meshwarden.controlplane.quota.leases import TTL_S, Leases
from meshwarden.controlplane.quota.tree import Bucket
from meshwarden.v1.resources_pb2 import RatePolicySpec

UP_S, FOUND_S, WATCHED_S = 2.0, (2.75, 3.0), 21.0
SEEDS: Final = 4


def case(*arguments: Any) -> Case:
    """The case; the arguments are those of `World`, without a seed."""
    found = Case(
        "quota", "convergence restart, model", "until the later of two nodes has found it", "s", may_be_nothing=True
    )
    for seed in range(SEEDS):
        found.add(Restarted(*arguments, seed).converged_s(), FOUND_S[1])
    return found


class Restarted(World):
    """The same points, whose control plane ends once it is warm."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._away = {0: False, 1: False}
        for leases in self._leases:
            leases._spec.when_away = RatePolicySpec.DENY
            leases._ends_s = TTL_S

    def _envoy(self) -> EnvoyBuckets:
        return EnvoyBuckets(RatePolicySpec.DENY, TTL_S)

    def converged_s(self) -> float:
        """In how many seconds each tenant has what it then keeps."""
        self._at(WARM_S, self._kill)
        self.run(self.divide)
        served = {tenant: sorted(moments) for tenant, moments in self._served.items()}
        return min(WATCHED_S, figures.converged_s(Record(served, self._offered), WARM_S, WARM_S + WATCHED_S))

    def _rate(self, tenant: str, now_s: float) -> float:
        return self._mean[tenant]

    def _kill(self, now_s: float) -> None:
        self._away = dict.fromkeys(self._away, True)
        self._at(now_s + UP_S, self._start)
        for node, found_s in enumerate(FOUND_S):
            self._at(now_s + found_s, self._find, node)

    def _start(self, now_s: float) -> None:
        self._divided = Leases(now_s, learn=True)
        self._divided.put(POLICY, self._tree)
        self._obeyed = [0] * len(self._obeyed)

    def _find(self, now_s: float, node: int) -> None:
        self._away[node] = False
        for number in range(node, len(self._points), 2):
            if number in self._envoys:
                shares = self._envoys[number].held
            else:
                shares = {tenant: known.rest.lease for tenant, known in self._leases[number]._tenants.items()}
            held = {Bucket(POLICY, (tenant,)): share[0] for tenant, share in shares.items() if share}
            self._divided.learn(self._points[number], held, now_s)
            self._hear(now_s, number, {}, 0)

    def _hear(self, now_s: float, number: int, usages: dict[Bucket, Usage], obeyed: int) -> None:
        if not self._away[number % 2]:
            super()._hear(now_s, number, usages, min(obeyed, self._divided.number))
            self._at(now_s + WAY_S, self._prolong, number, now_s - WAY_S + TTL_S)

    def _prolong(self, now_s: float, number: int, ends_s: float) -> None:
        if number in self._envoys:
            self._envoys[number].prolong(ends_s)
        else:
            self._leases[number].prolong(ends_s, now_s)

    def _tick(self, now_s: float, steadily: bool) -> None:
        if all(self._away.values()):
            self._will_tick = False
            if steadily:
                self._at(now_s + 0.5, self._tick, True)
            return
        super()._tick(now_s, steadily)
