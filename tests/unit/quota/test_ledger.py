"""Amounts for a period: whatever is lost and whoever dies, no more is let in than the period has, at any level."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.quota.period_world import METHOD, POLICY, SPEC, Server, World

from meshwarden.controlplane.quota import ledgers, period_view
from meshwarden.controlplane.quota.holding import Chunks
from meshwarden.controlplane.quota.ledger import Ledger
from meshwarden.controlplane.quota.tree import Bucket, Level, Point
from meshwarden.v1 import quota_service_pb2 as pb

pytestmark = pytest.mark.timeout(300)

TREE: dict[str, Any] = {
    "service": "orders",
    "period": "HOUR",
    "total": {"requests": 60},
    "limits": [
        {"tenant": "acme", "requests": 50, "floor": 20, "methods": [{"method": METHOD, "requests": 25, "floor": 5}]},
        {"tenant": "globex", "requests": 30},
        {"tenant": "*", "requests": 10},
    ],
}
TENANTS, METHODS = ["acme", "globex", "initech", "hooli"], [METHOD, "/x/Z"]
WHICH = st.integers(0, 5)


class Machine(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(TREE)

    def server(self, which: int) -> Server:
        return self.world.servers[which % len(self.world.servers)]

    @rule(which=WHICH, tenant=st.sampled_from(TENANTS), method=st.sampled_from(METHODS), count=st.integers(1, 30))
    def calls(self, which: int, tenant: str, method: str, count: int) -> None:
        for _ in range(count):
            self.world.call(self.server(which), tenant, method)

    @rule(which=WHICH)
    def report(self, which: int) -> None:
        self.server(which).report(self.world.now_s)

    @rule(lost=st.booleans())
    def up(self, lost: bool) -> None:
        self.world.up(lost=lost)

    @rule(end=st.sampled_from(["told", "told", "not written", "written by an end", "ends before", "ends after"]))
    def give(self, end: str) -> None:
        self.world.plan()
        if end != "not written" and end != "ends before":
            self.world.write()
        if end == "told":
            self.world.tell()
        elif end != "not written" and end != "written by an end":
            self.world.start_control_plane()

    @rule(lost=st.booleans())
    def down(self, lost: bool) -> None:
        self.world.down(lost=lost)

    @rule(which=WHICH, lost=st.booleans())
    def hear(self, which: int, lost: bool) -> None:
        self.server(which).hear(self.world.now_s, lost=lost)

    @rule(times=st.integers(1, 5))
    def rounds(self, times: int) -> None:
        for _ in range(times):
            self.world.wait(1)
            self.world.round()

    @rule(times=st.integers(3, 12))
    def spend(self, times: int) -> None:
        for _ in range(times):
            for server in self.world.servers:
                for tenant in TENANTS:
                    for method in METHODS:
                        self.world.call(server, tenant, method)
                        self.world.call(server, tenant, method)
            self.world.wait(1)
            self.world.round()

    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        self.world.servers.remove(self.server(which))
        self.world.start_server()

    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        self.world.leave(self.server(which))
        self.world.start_server()

    @rule()
    def restart_agent(self) -> None:
        self.world.stream, self.world.ended = None, []
        for server in self.world.servers:
            server.cut()

    @rule()
    def restart_control_plane(self) -> None:
        self.world.start_control_plane()

    @rule(seconds=st.sampled_from([0.1, 1, 5, 70, 150, 1800, 3600]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(seconds=st.sampled_from([-7200, -3600, -1, 1, 3600, 7200]))
    def turn_the_clock(self, seconds: float) -> None:
        self.world.wall_s += seconds

    @rule()
    def delete_and_make_again(self) -> None:
        self.world.apply(None)
        self.world.apply(TREE)

    @invariant()
    def no_level_has_let_in_more_than_it_has(self) -> None:
        for calls in self.world.admitted.values():
            by = {tenant: sum(n for (who, _), n in calls.items() if who == tenant) for tenant in TENANTS}
            assert sum(by.values()) <= 60
            assert by["globex"] + by["initech"] + by["hooli"] <= 60 - 20, "acme's floor is kept free"
            assert by["acme"] <= 50
            assert calls["acme", METHOD] <= 25
            assert calls["acme", "/x/Z"] <= 50 - 5, "the method's floor is kept free"
            assert by["globex"] <= 30
            assert by["initech"] <= 10
            assert by["hooli"] <= 10

    @invariant()
    def what_is_written_is_as_much_as_was_let_in(self) -> None:
        for name, calls in self.world.admitted.items():
            written = self.world.ledgers._books.get(name)
            if written is not None:
                assert sum(one.granted for one in written.accounts.values()) >= sum(calls.values())


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMachine = Machine.TestCase


def spend(world: World, tenant: str = "acme", rounds: int = 400, each: int = 3, method: str = METHOD) -> int:
    """Calls at all servers until nothing more is let in for a while; how many were."""
    passed, silent = 0, 0
    for _ in range(rounds):
        now = sum(world.call(server, tenant, method) for server in world.servers for _ in range(each))
        passed, silent = passed + now, 0 if now else silent + 1
        if silent > 5:
            break
        world.wait(0.5)
        world.round()
    return passed


def test_all_of_an_amount_can_be_used_and_no_more() -> None:
    world = World({**SPEC, "total": {"requests": 1000}})
    assert spend(world) == 1000
    ledger = world.ledgers.find(POLICY)
    assert ledger is not None
    (account,) = ledger.accounts.values()
    assert (account.granted, account.used) == (1000, 1000)


def day(amount: int, servers: int = 2, **more: Any) -> World:
    return World({**SPEC, "total": {"requests": amount}, **more}, servers)


def spent(world: World) -> float:
    """What is charged in the present period."""
    ledger = world.ledgers.find(POLICY)
    assert ledger is not None
    return sum(one.granted for one in ledger.accounts.values())


def let_in(world: World) -> int:
    return sum(sum(calls.values()) for calls in world.admitted.values())


def test_a_control_plane_that_starts_again_gives_only_what_is_left() -> None:
    world = day(300)
    for end in range(30):
        spend(world, rounds=2)
        world.plan()
        if end % 2:
            world.write()
        world.start_control_plane()
    spend(world)
    assert spent(world) == 300
    assert let_in(world) <= 300


def test_a_word_that_is_lost_is_said_again() -> None:
    world = day(50, servers=1)
    for _ in range(30):
        world.call(world.servers[0], "acme")
        world.servers[0].report(world.now_s)
        world.up()
        world.plan()
        world.write()
        world.tell()
        world.down(lost=True)
        world.wait(1)
    assert let_in(world) == 0
    assert 0 < spent(world) < 50, "it is not given again what it was given"
    assert spend(world) == 50


def test_so_is_the_last_that_there_was() -> None:
    world = day(1, servers=1)
    world.call(world.servers[0], "acme")
    world.servers[0].report(world.now_s)
    world.up()
    world.plan()
    world.write()
    world.tell()
    world.down(lost=True)
    assert (spent(world), let_in(world)) == (1, 0)
    assert spend(world) == 1


def test_a_message_that_comes_twice_gives_once() -> None:
    world = day(50, servers=1)
    (server,) = world.servers
    world.call(server, "acme")
    world.round()
    left = server.chunks._tenants["acme"].rest.left
    assert left > 0
    assert server.agent is not None
    chunk = server.chunks.report(world.now_s, full=True).usages[0]
    assert chunk.chunks.amount == left
    share = pb.Share(
        bucket=chunk.bucket, chunk=pb.Chunk(series=chunk.chunks.series, turn=chunk.chunks.turn, amount=left)
    )
    share.chunk.until.FromSeconds(1000)
    for _ in range(3):
        server.chunks.grant([share], world.now_s, world.now_s)
    assert server.chunks._tenants["acme"].rest.left == left


def test_a_server_that_ends_in_good_order_gives_back_what_it_has_once() -> None:
    world = day(100)
    one, other = world.servers
    for _ in range(4):
        for server in world.servers:
            world.call(server, "acme")
        world.round()
        world.wait(1)
    before = spent(world)
    world.leave(one)
    said = list(world.ended)
    world.up()
    returned = before - spent(world)
    assert returned > 0
    world.ended = said
    world.up()
    assert before - spent(world) == returned, "said again, since nobody had answered"
    world.ended = []
    spend(world)
    assert let_in(world) == 100, "nothing of it is lost"
    assert world.call(other, "acme") is False


def test_a_server_that_ends_before_it_hears_of_a_new_day_gives_back_what_it_was_to_have_of_that() -> None:
    world = day(100)
    spend(world, rounds=4)
    world.wall_s += 86_400
    one, _ = world.servers
    for server in world.servers:
        world.call(server, "acme")
        server.report(world.now_s)
    for _ in range(2):
        world.up()
        world.plan()
        world.write()
        world.tell()
        for server in world.servers:
            server.report(world.now_s)
    before = spent(world)
    assert before >= 2
    world.leave(one)
    world.up()
    assert 0 < spent(world) < before
    world.ended = []
    spend(world)
    (_, calls) = sorted(world.admitted.items())
    assert sum(calls[1].values()) == 100


def test_a_server_that_dies_loses_what_it_had_and_that_is_shown() -> None:
    world = day(100)
    dead = world.servers[0]
    for _ in range(5):
        for server in world.servers:
            world.call(server, "acme")
        world.round()
        world.wait(1)
    had = dead.chunks._tenants["acme"].rest.left
    world.servers.remove(dead)
    assert had > 0
    spend(world)
    world.wait(6)
    (state,) = period_view.states(POLICY, world.ledgers, world.usages, lambda _: True, world.now_s, whole=True)
    assert let_in(world) == 100 - had
    assert state.period.lost == had
    assert state.period.granted == 100
    assert state.period.left == 0
    assert "used up" in state.reason


def test_who_goes_on_knows_what_was_used_meanwhile() -> None:
    world = day(300, servers=3)
    spend(world, rounds=4)
    for server in world.servers:
        while world.call(server, "acme"):
            pass
    world.start_control_plane()
    dead = world.servers.pop().chunks._tenants["acme"].rest
    for _ in range(3):
        world.wait(3)
        world.round()
    (state,) = period_view.states(POLICY, world.ledgers, world.usages, lambda _: True, world.now_s, whole=True)
    assert 0 < state.period.lost == dead.allowed, "what it has used and not said"
    spend(world)
    world.wait(1)
    world.round()
    ledger = world.ledgers.find(POLICY)
    assert ledger is not None
    (account,) = ledger.accounts.values()
    assert let_in(world) == 300
    assert account.used == 300 - dead.allowed


def test_what_was_used_while_nobody_listened_is_no_demand() -> None:
    world = day(100_000, servers=1)
    (server,) = world.servers
    spend(world, rounds=10, each=10)
    for _ in range(20):  # the control plane is away
        for _ in range(5):
            world.call(server, "acme")
        world.wait(0.5)
        server.report(world.now_s)
    world.start_control_plane()
    world.round()
    ledger = world.ledgers.find(POLICY)
    assert ledger is not None
    (holding,) = ledger.holdings.values()
    assert holding.out <= 2 * 20


def test_another_process_under_the_same_name_has_nothing() -> None:
    world = day(100, servers=1)
    for _ in range(200):
        server = world.servers[0]
        for _ in range(3):
            world.call(server, "acme")
        world.wait(1)
        world.round()
        world.servers.remove(server)
        world.start_server()
        world.servers[0].name = server.name
    assert spent(world) == 100
    assert let_in(world) <= 100


def test_a_clock_that_is_turned_gives_no_day_twice_and_goes_on_when_it_is_right() -> None:
    world = day(100)
    assert spend(world, rounds=5) < 100
    for days in (1, -1, 3, -3, 1, -1):
        world.wall_s += days * 86_400
        spend(world, rounds=3)
    spend(world)
    assert max(sum(calls.values()) for calls in world.admitted.values()) <= 100
    assert len(world.admitted) == 3
    assert spent(world) == 100, "today is used up"
    world.wall_s += 86_400
    spend(world)
    assert spent(world) == 100, "tomorrow has only what was not given of it too early"
    world.wall_s += 86_400
    assert spend(world) == 100


def test_a_day_whose_ledger_is_gone_is_not_begun_again() -> None:
    world = day(100)
    assert spend(world) == 100
    for days in (10, 10, 10):  # its ledger is let go
        world.wall_s += days * 86_400
        spend(world, rounds=3)
    world.wall_s -= 30 * 86_400
    world.servers = [Server("new", lambda: 99, world._sent)]
    assert spend(world) == 0
    world.start_control_plane()
    assert spend(world) == 0
    world.wall_s += 86_400
    assert spend(world) == 100, "it does not block for longer"


def test_old_ledgers_are_deleted_but_for_the_last() -> None:
    world = day(10)
    for _ in range(5):
        assert spend(world) == 10
        world.wall_s += 86_400
    world.round()
    starts = sorted({key.split("/")[4] for key in world.store})
    assert len(starts) == 3, world.records
    before = world.ledgers.before(POLICY)
    assert before is not None
    assert sum(one.used for one in before.accounts.values()) == 10
    world.apply(None)
    world.wait(100 + 86_400)
    world.round()
    world.round()
    assert world.store == {}, "of a policy that is gone nothing stays"


def test_a_limit_that_is_changed_leaves_spent_what_is() -> None:
    world = day(100)
    assert spend(world) == 100
    world.apply({**SPEC, "total": {"requests": 40}})
    assert spend(world) == 0
    world.apply({**SPEC, "total": {"requests": 130}})
    assert spend(world) == 30
    limits = [{"tenant": "acme", "requests": 140, "methods": [{"method": METHOD, "requests": 135}]}]
    world.apply({**SPEC, "limits": limits, "total": {"requests": 150}})
    assert spend(world) + spend(world, method="/x/Z") == 10, "what was spent is spent, by whatever method"
    world.apply({**SPEC, "total": {"requests": 150}})
    assert spend(world) == 10


def test_a_policy_that_is_made_again_finds_what_was_spent() -> None:
    world = day(100)
    spend(world, rounds=10)
    before = spent(world)
    for _ in range(3):
        world.apply(None)
        world.round()
        world.apply(SPEC)
        spend(world, rounds=1)
    world.start_control_plane()
    spend(world)
    assert before > 0
    assert spent(world) == 100
    assert let_in(world) <= 100


@pytest.mark.parametrize("is_written", [True, False])
def test_what_was_used_of_a_policy_that_goes_while_a_write_is_awaited_is_written_next(is_written: bool) -> None:
    world = day(100)
    spend(world, rounds=10)
    (account,) = world.ledgers.find(POLICY).accounts.values()  # type: ignore[union-attr]
    world.plan()
    if is_written:
        world.write()
    for server in world.servers:
        world.call(server, "acme", METHOD)
        server.report(world.now_s)
    world.up()
    world.apply(None)
    if is_written:
        world.tell()
    world.plan()
    world.write()
    used, world.servers = account.used, []
    world.start_control_plane()
    (written,) = world.ledgers.find(POLICY).accounts.values()  # type: ignore[union-attr]
    assert written.used == used > 0


def test_a_floor_is_kept_free_for_who_has_it() -> None:
    limits = [{"tenant": "acme", "requests": 80, "floor": 30}, {"tenant": "globex", "requests": 90}]
    world = day(100, limits=limits)
    assert spend(world, "globex") == 70
    assert spend(world, "acme") == 30


def test_who_lies_about_what_it_gives_back_moves_nothing() -> None:
    world = day(100, servers=1)
    spend(world)
    ledger = world.ledgers.find(POLICY)
    assert ledger is not None
    (holding,) = ledger.holdings.values()
    point, path, turn = holding.point, holding.path, ledger.turn
    for series in (holding.series, 77):
        lie = Chunks(series, turn, 1e9, 0, 1e9, 0)
        world.ledgers.report(point, Bucket(POLICY, path), lie, 0, world.now_s, again=False)
        world.ledgers.report(point, Bucket(POLICY, path), lie._replace(returned=1e9), 0, world.now_s, again=False)
    assert 0 <= spent(world) <= 100
    world.ledgers.end(point, Bucket(POLICY, path), Chunks(78, turn, 1e9, 0, 1e9, 0))
    assert 0 <= spent(world) <= 100


@pytest.mark.parametrize(
    "said",
    [
        Chunks(1, 1, float("nan"), 0, 0, 0),
        Chunks(1, 1, 1, 2, 0, 0),
        Chunks(1, 1, 1, 0, 2, 0),
        Chunks(1, 1, 1, 1, 1, 0),
        Chunks(1, 1, float("inf"), 0, 0, 0),
        Chunks(1, 1, -1, -1, 0, 0),
        Chunks(1, 1, 1, -1e300, 0, 0),
        Chunks(1, 1, 1, 0, 0, float("inf")),
    ],
)
def test_what_can_t_be_is_not_believed(said: Chunks) -> None:
    assert not said.is_sane()


def test_of_a_record_that_can_t_be_read_nothing_is_given() -> None:
    world = day(100)
    spend(world, rounds=3)
    (key,) = [key for key, value in world.store.items() if b'"acme"' in value]
    world.store[key] = b"{"
    world.start_control_plane()
    world.servers = []
    world.start_server()
    assert spend(world) == 0
    assert spend(world, "globex") == 0, "nor to others"
    world.wall_s += 86_400
    assert spend(world) > 0


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "MAX_ACCOUNTS", 3)
    world = day(100)
    for number in range(10):
        spend(world, f"t{number}", rounds=3)
    assert len({tenant for calls in world.admitted.values() for tenant, _ in calls}) == 3
    assert world.ledgers.too_many > 0


def test_an_amount_that_a_call_needs_is_given_whole() -> None:
    world = World({**SPEC, "total": {"cost": 100_000}, "reserve": 5000}, servers=1)
    (server,) = world.servers
    for _ in range(3):
        server.call("acme", METHOD, world.now_s, 5000)
        world.round()
        world.wait(1)
    assert server.call("acme", METHOD, world.now_s, 5000)[1], "more than a hundredth of what remains"


def test_names_of_points_that_are_made_up_take_no_room() -> None:
    ledger = Ledger(Level(ceiling=9.0, parts={"acme": Level(ceiling=9.0)}), 1)
    for number in range(99):
        ledger.hear(Point("n1", f"idle/{number}"), 0.0)
        ledger.report(Point("n1", f"moving/{number}"), ("acme",), Chunks(7), 1.0, 0.0, again=False)
    (holding,) = ledger.holdings.values()
    assert ledger.lives(holding, 0.0)
    assert (len(ledger._heard_s), len(ledger._series)) == (1, 1)
    ledger.leave(Point("n1", "moving/98"))
    assert (ledger._heard_s, ledger._series, ledger.holdings) == ({}, {}, {})
