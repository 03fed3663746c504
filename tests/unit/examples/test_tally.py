"""Paced calls and their sum."""

import threading

from meshwarden.examples.probe.tally import Outcome, Pace, Tally, run

OK = Outcome("OK", failed=False, said={"versions": "v1"})


def test_the_sum_has_every_call_and_the_first_failures() -> None:
    tally = Tally()
    for number in range(1000):
        tally.add(OK, number / 1000)
    for number in range(150):
        tally.add(Outcome("UNAVAILABLE", failed=True, error=f"e{number}", trailing={"retry-after": "1"}), 0.0)
    answer = tally.answer()
    assert answer["codes"] == {"OK": 1000, "UNAVAILABLE": 150}
    assert answer["count"] == 1150
    assert answer["versions"] == {"v1": 1000}
    assert (len(answer["failed"]), len(answer["errors"]), len(answer["trailing"])) == (100, 10, 10)
    assert 400 < answer["latency_ms"]["p50"] < 450
    assert answer["latency_ms"]["p99"] > 980


def test_each_call_is_made_once_whatever_the_concurrency() -> None:
    lock, workers = threading.Lock(), set()

    def call(worker: int) -> Outcome:
        with lock:
            workers.add(worker)
        return OK

    answer = run(Pace(count=500, rate=0, concurrency=8, duration_s=0), call, threading.Event())
    assert answer["codes"] == {"OK": 500}
    assert workers <= set(range(8))


def test_stopping_ends_a_load_without_end() -> None:
    stop, made = threading.Event(), []

    def call(_: int) -> Outcome:
        made.append(1)
        if len(made) == 20:
            stop.set()
        return OK

    assert run(Pace(count=0, rate=10_000, concurrency=1, duration_s=0), call, stop)["count"] == 20


def test_a_duration_ends_it_too_and_no_call_answers_with_zeros() -> None:
    answer = run(Pace(count=0, rate=0, concurrency=2, duration_s=1e-9), lambda _: OK, threading.Event())
    assert (answer["count"], answer["latency_ms"]) == (0, {"p50": 0.0, "p99": 0.0})
