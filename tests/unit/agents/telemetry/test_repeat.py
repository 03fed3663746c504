"""Requests that go again are taken once; what is said of it by those who mean no good counts for them alone."""

import pytest

from meshwarden.agents.telemetry.repeat import Repeats
from meshwarden.sdk.tracing.numbered import KEY, Number, Numbers, find

RUN = "0123456789abcdef"


def test_what_was_taken_is_known_again() -> None:
    repeats, numbers = Repeats(), Numbers()
    first, second = numbers.next(), numbers.next()
    assert not repeats.has("acme/web", first)
    repeats.add("acme/web", first)
    assert repeats.has("acme/web", first)
    assert not repeats.has("acme/web", second)
    assert not repeats.has("acme/other", first)
    assert not repeats.has("acme/web", Numbers().next())


def test_what_has_no_number_never_is() -> None:
    repeats = Repeats()
    repeats.add("acme/web", None)
    assert not repeats.has("acme/web", None)


def test_runs_without_end_push_out_their_workloads_own() -> None:
    repeats = Repeats()
    other = Number(RUN, 1)
    repeats.add("globex/web", other)
    for number in range(300):
        repeats.add("acme/web", Number(f"{number:016x}", 1))
    assert repeats.has("globex/web", other)
    assert not repeats.has("acme/web", Number(f"{0:016x}", 1))
    assert repeats.has("acme/web", Number(f"{299:016x}", 1))
    for number in range(1024):
        repeats.add(f"acme/{number}", other)
    assert not repeats.has("globex/web", other)


def test_a_number_is_read_as_it_was_written() -> None:
    number = Numbers().next()
    assert find([("user-agent", "x"), *number.metadata]) == number


@pytest.mark.parametrize(
    "said",
    ["", "1", f"{RUN}-", f"{RUN}--1", f"{RUN}-1 ", f"{RUN[1:]}-1", f"{RUN}-{10**18}", f"{RUN}-١", RUN.upper() + "-1"],
)
def test_what_is_no_number_counts_as_none(said: str) -> None:
    assert find([(KEY, said)]) is None


def test_no_metadata_has_no_number() -> None:
    assert find(None) is None
