"""Spans on their way out: made = taken + lost, whatever their carrier does."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from meshwarden.sdk.tracing import span_queue
from meshwarden.sdk.tracing.numbered import Number
from meshwarden.sdk.tracing.provider import Provider
from meshwarden.sdk.tracing.span_queue import Away, Refused, SpanQueue

FOR_EVER_S = 3600.0


class Agent:
    """A carrier to an agent that does what it is told."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Semaphore(0)
        self.taken: list[str] = []
        self.sent: list[tuple[Number, bytes]] = []
        self.largest = 0
        self.suppressed: list[Any] = []
        self.is_closed = False

    def pack(self, spans: Sequence[Any]) -> bytes:
        if any(span == "unwritable" for span in spans):
            raise ValueError("a span that nobody can write")
        return b",".join(str(span).encode() for span in spans)

    def send(self, body: bytes, number: Number) -> None:
        self.suppressed.append(get_value(_SUPPRESS_INSTRUMENTATION_KEY))
        self.sent.append((number, body))
        self.asked.release()
        self.answers.wait()
        if self.is_closed:
            raise Away("closed")
        if self.fault is not None:
            raise self.fault
        self.taken += body.decode().split(",")
        self.largest = max(self.largest, len(body))

    def close(self) -> None:
        self.is_closed = True
        self.answers.set()

    def renew(self) -> None:
        """Nothing is left of the parent's."""


class World:
    """A queue, what its agent has taken and what it has lost."""

    def __init__(self, **bounds: Any) -> None:
        self.agent, self.lost = Agent(), Counter[str]()
        self._lock = threading.Lock()
        self.queue = SpanQueue(self.agent, self._lose, delay_s=bounds.pop("delay_s", FOR_EVER_S), **bounds)

    def _lose(self, reason: str, count: int) -> None:
        with self._lock:
            self.lost[reason] += count

    def keep(self, *spans: str) -> None:
        for span in spans:
            self.queue.keep(span)

    def flush(self) -> bool:
        return self.queue.force_flush(60_000)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    monkeypatch.setattr(span_queue, "_PAUSE_S", (0.001, 0.01))
    made: list[World] = []

    def of(**bounds: Any) -> World:
        made.append(World(**bounds))
        return made[-1]

    yield of
    for world in made:
        world.agent.answers.set()
        world.queue.shutdown()


def test_what_ends_is_taken_in_its_order(make: Callable[..., World]) -> None:
    world = make()
    names = [f"s{number}" for number in range(2000)]
    world.keep(*names)
    assert world.flush()
    assert world.agent.taken == names
    assert not world.lost
    assert set(world.agent.suppressed) == {True}


def test_a_few_spans_do_not_wait_for_others(make: Callable[..., World]) -> None:
    world = make(delay_s=0.001)
    world.keep("a")
    assert world.agent.asked.acquire(timeout=60)


@pytest.mark.parametrize("fault", [Away("UNAVAILABLE"), Away("limited", retry_s=0.002)])
def test_the_same_bytes_go_again_until_they_are_taken(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    world = make()
    world.agent.fault = fault
    world.keep("a", "b")
    assert not world.queue.force_flush(1)
    for _ in range(5):
        assert world.agent.asked.acquire(timeout=60)
    world.keep("c")
    world.agent.fault = None
    assert world.flush()
    assert world.agent.taken == ["a", "b", "c"]
    first, again = world.agent.sent[0], world.agent.sent[:5]
    assert set(again) == {first}
    assert world.agent.sent[-1] == (Number(first[0].run, first[0].sequence + 1), b"c")
    assert not world.lost
    assert caplog.text.count("spans wait") == 1


def test_what_is_refused_is_lost_and_the_next_is_taken(make: Callable[..., World]) -> None:
    world = make()
    world.agent.fault = Refused("INVALID_ARGUMENT")
    world.keep("a", "b")
    assert world.flush()
    world.agent.fault = None
    world.keep("c")
    assert world.flush()
    assert (world.agent.taken, world.lost) == (["c"], {"refused": 2})


def test_the_oldest_are_lost_at_the_bound_but_those_that_may_be_taken(make: Callable[..., World]) -> None:
    world = make(max_bytes=5000)
    world.agent.answers.clear()
    names = [f"s{number:03}" for number in range(3000)]
    for start in range(0, 3000, 100):
        world.keep(*names[start : start + 100])
        assert not world.queue.force_flush(0)
    assert world.queue._size_bytes <= 5000
    world.agent.answers.set()
    assert world.flush()
    taken = world.agent.taken
    assert taken == [*names[:100], *names[3000 - len(taken) + 100 :]]
    assert 700 < len(taken) < 1100
    assert world.lost == {"queue_full": 3000 - len(taken)}


def test_what_can_not_be_packed_in_time_is_lost(make: Callable[..., World]) -> None:
    world = make(max_row=10)
    with world.queue._packing:
        world.keep(*(f"s{number}" for number in range(25)))
    assert world.flush()
    assert (len(world.agent.taken), world.lost) == (10, {"queue_full": 15})


def test_large_spans_go_in_small_batches_or_not_at_all(make: Callable[..., World]) -> None:
    world = make()
    large = ["x" * 100_000] * 20
    world.keep(*large, "y" * (2 << 20), "z" * (5 << 20), "end")
    assert world.flush()
    assert world.agent.taken == [*large, "y" * (2 << 20), "end"]
    assert world.agent.largest <= 2 << 20
    assert sum(len(body) > 768 << 10 for _, body in world.agent.sent) == 1
    assert world.lost == {"too_large": 1}


def test_a_span_that_can_not_be_written_costs_no_other(make: Callable[..., World]) -> None:
    world = make()
    world.keep("a", "b", "unwritable", "c", "d")
    assert world.flush()
    assert (world.agent.taken, world.lost) == (["a", "b", "c", "d"], {"malformed": 1})


def test_what_is_left_goes_at_the_end(make: Callable[..., World]) -> None:
    world = make()
    world.agent.fault = Away("UNAVAILABLE")
    world.keep("a")
    world.queue.force_flush(0)
    assert world.agent.asked.acquire(timeout=60)
    world.keep("b")
    ending = threading.Thread(target=world.queue.shutdown)
    ending.start()
    assert world.agent.asked.acquire(timeout=60)
    world.agent.fault = None
    ending.join(60)
    world.keep("late")
    assert (world.agent.taken, world.lost) == (["a", "b"], {"shutdown": 1})


def test_the_end_does_not_wait_for_ever(make: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_queue, "SHUTDOWN_S", 0.01)
    world = make()
    world.agent.answers.clear()
    world.keep("a", "b")
    world.queue.force_flush(0)
    assert world.agent.asked.acquire(timeout=60)
    world.keep("c")
    world.queue.shutdown()
    assert (world.agent.taken, world.lost) == ([], {"shutdown": 3})


def test_an_end_while_the_first_span_comes_waits_for_what_that_starts(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, go_on = threading.Event(), threading.Event()

    class Slow(threading.Thread):
        """A thread that takes its time to start."""

        def start(self) -> None:
            starting.set()
            assert go_on.wait(60)
            super().start()

    world, ended = make(), threading.Event()

    def end() -> None:
        world.queue.shutdown()
        ended.set()

    first, last = threading.Thread(target=world.keep, args=("a",)), threading.Thread(target=end)
    with monkeypatch.context() as slowly:
        slowly.setattr(span_queue.threading, "Thread", Slow)
        first.start()
        assert starting.wait(60)
        last.start()
        # It waits; at once it would have failed, for a thread that hasn't started can't be waited for.
        assert world.queue._closing.wait(60)
        go_on.set()
        first.join(60)
        assert ended.wait(60)
    assert sum(world.lost.values()) + len(world.agent.taken) == 1


def test_threads_lose_no_span_uncounted(make: Callable[..., World]) -> None:
    world = make(max_row=1000, max_bytes=100_000)
    turns = 20_000

    def work(name: int) -> None:
        world.keep(*(f"{name}-{number}" for number in range(turns)))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.flush()
    assert len(world.agent.taken) == len(set(world.agent.taken)) == 4 * turns - world.lost["queue_full"]


# Its parent's spans are under way and packed and not yet packed when it is made.
FORKED = """
import os, sys, threading
from meshwarden.sdk.tracing.span_queue import SpanQueue
class Carrier:
    def __init__(self):
        self.sent, self.asked, self.answers = [], threading.Event(), threading.Event()
    def pack(self, spans):
        return ",".join(spans).encode()
    def send(self, body, number):
        self.asked.set()
        self.answers.wait()
        self.sent.append((body.decode(), number.run))
    def close(self): pass
    def renew(self):
        self.answers.set()
        self.sent.append(("renewed", ""))
carrier = Carrier()
queue = SpanQueue(carrier, lambda reason, count: print("lost", reason, count), delay_s=3600)
queue.keep("a")
queue.force_flush(0)
carrier.asked.wait()
queue.keep("b")
queue.force_flush(0)
queue.keep("c")
child = os.fork()
if not child:
    queue.keep("d")
else:
    assert os.waitpid(child, 0)[1] == 0
    carrier.answers.set()
queue.shutdown()
runs = {run for _, run in carrier.sent if run}
print("child" if not child else "parent", [body for body, _ in carrier.sent], len(runs), flush=True)
"""


def test_a_child_made_by_fork_sends_nothing_of_its_parents() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["child ['renewed', 'd'] 1", "parent ['a', 'b', 'c'] 1"]


def test_only_sampled_spans_of_a_program_are_taken(make: Callable[..., World]) -> None:
    world = make()
    for provider in (TracerProvider(shutdown_on_exit=False), TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)):
        provider.add_span_processor(world.queue)
        with provider.get_tracer("test").start_as_current_span("work"):
            pass
    assert world.flush()
    assert len(world.agent.taken) == 1


class Mixed(Agent):
    """Takes spans of calls and of the program, by their names."""

    def pack_calls(self, calls: Sequence[Any], resource: Any, scope: Any) -> bytes:
        assert resource.attributes["service.name"]
        assert scope.name == "meshwarden.sdk"
        return b"".join(f"call {call.attributes['rpc.method']},".encode() for call in calls)

    def pack(self, spans: Sequence[Any]) -> bytes:
        return b"".join(f"{span.name},".encode() for span in spans)


def test_spans_of_calls_and_of_the_program_go_the_same_way() -> None:
    agent, lost = Mixed(), Counter[str]()
    provider = Provider(
        agent, lambda: 1.0, lost=lambda *_: lost.update("x"), delay_s=FOR_EVER_S, shutdown_on_exit=False
    )
    assert provider.recorder is not None
    for _ in range(2):
        with provider.get_tracer("test").start_as_current_span("work"):
            provider.recorder.client("/o.Orders/Get", "orders").end(grpc.StatusCode.OK, "")
    provider.force_flush()
    provider.recorder.client("/o.Orders/Put", "orders").end(grpc.StatusCode.OK, "")
    provider.shutdown()
    assert [body for _, body in agent.sent] == [b"call o.Orders/Get," * 2 + b"work," * 2, b"call o.Orders/Put,"]
    assert not lost
