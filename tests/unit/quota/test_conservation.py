"""What many points let through together, with all parts as they are and time that a test drives.

Whatever happens, no window holds more than the bound of docs/quotas.md, computed for the run, and at no instant points
have more than there is.
"""

import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.quota.mesh_world import AT_ONCE, RATE, Costly, Crowd, Mesh

pytestmark = pytest.mark.timeout(300)

FAULTS = ["cut_server", "kill_server", "restart_agent", "hold_agent_back", "restart_control_plane", "part", "shift"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    loads=st.lists(st.sampled_from([0.5, 5.0, 30.0, 80.0, 300.0]), min_size=1, max_size=6),
    faults=st.lists(st.tuples(st.integers(0, 400), st.sampled_from(FAULTS), st.integers(0, 99)), max_size=8),
)
def test_no_window_has_more_than_the_bound(seed: int, loads: list[float], faults: list[tuple[int, str, int]]) -> None:
    mesh = Mesh(loads, random.Random(seed))
    due = {number: (name, which) for number, name, which in faults}
    for number in range(500):
        if number in due:
            name, which = due[number]
            getattr(mesh, name)(which)
        mesh.step(number)
    mesh.check()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    loads=st.lists(st.sampled_from([0.5, 5.0, 30.0]), min_size=1, max_size=4),
    faults=st.lists(st.tuples(st.integers(0, 400), st.sampled_from(FAULTS), st.integers(0, 99)), max_size=6),
)
def test_what_calls_cost_too_much_is_paid(seed: int, loads: list[float], faults: list[tuple[int, str, int]]) -> None:
    costly = Costly(loads, random.Random(seed))
    due = {number: (name, which) for number, name, which in faults}
    for number in range(500):
        if number in due:
            name, which = due[number]
            getattr(costly, name)(which)
        costly.step(number)
    costly.check()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    loads=st.lists(st.sampled_from([0.5, 5.0, 30.0, 80.0]), min_size=1, max_size=6),
    faults=st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from([*FAULTS, "surge"]), st.integers(0, 99)), max_size=8
    ),
)
@example(seed=7, loads=[30.0, 0.0], faults=[(200, "surge", 1)])
def test_never_more_calls_run_than_the_bound(seed: int, loads: list[float], faults: list[tuple[int, str, int]]) -> None:
    crowd = Crowd(loads, random.Random(seed))
    due = {number: (name, which) for number, name, which in faults}
    for number in range(500):
        if number in due:
            name, which = due[number]
            getattr(crowd, name)(which)
        crowd.step(number)


@pytest.mark.parametrize("loads", [[80.0], [30.0, 30.0, 5.0], [80.0, 5.0, 5.0, 5.0], [30.0] * 4])
def test_slots_are_used_however_the_load_is_spread(loads: list[float]) -> None:
    crowd, running = Crowd(loads, random.Random(7)), list[int]()
    for number in range(600):
        crowd.step(number)
        running.append(sum(len(server.running) for server in crowd.servers))
    assert sum(running[300:]) / 300 >= 0.75 * AT_ONCE


# What is set aside for the chance of a small load is lost to a large one.
@pytest.mark.parametrize(
    ("loads", "least"),
    [([300.0], 0.9), ([80.0, 80.0, 5.0], 0.85), ([300.0, 5.0, 5.0, 5.0], 0.7), ([60.0] * 4, 0.9)],
)
def test_the_limit_is_used_and_not_exceeded_however_the_load_is_spread(loads: list[float], least: float) -> None:
    mesh = Mesh(loads, random.Random(7))
    for number in range(600):
        mesh.step(number)
    mesh.check()
    last = [moment for moment in mesh.passed if moment >= 20]
    wanted = min(RATE, sum(loads))
    assert least * wanted <= len(last) / 10 <= 1.05 * wanted
