"""The bus: nothing is lost without being counted, and what is not acknowledged comes again."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.bus.broker import Broker, Key, Limits
from meshwarden.examples.daena.bus.service import Bus
from meshwarden.examples.daena.bus.subscription import MAX_ATTEMPTS, Message, Subscription
from meshwarden.examples.daena.error import Full, Replaced, Unknown
from meshwarden.examples.daena.metric import Meter

KEY = Key("acme", "spiffe://mesh.test/tenant/acme/service/analyst", "outcomes")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def message(number: int) -> Message:
    return Message(number, b"%d" % number, "spiffe://mesh.test/tenant/daena/service/council", "")


def taken(queue: Subscription, now_s: float) -> list[int]:
    found = []
    while (delivery := queue.take(now_s)) is not None:
        found.append(delivery.message.id)
    return found


def test_messages_come_in_order_and_no_more_than_the_window() -> None:
    queue = Subscription(size=10, window=3, acknowledge_s=5)
    for number in range(1, 6):
        queue.offer(message(number))
    assert taken(queue, 0) == [1, 2, 3]
    assert queue.acknowledge(2)
    assert taken(queue, 1) == [4]


def test_what_is_not_acknowledged_in_time_comes_again_and_says_so() -> None:
    queue = Subscription(size=10, window=10, acknowledge_s=5)
    queue.offer(message(1))
    first = queue.take(0)
    assert queue.take(4.9) is None
    again = queue.take(5)
    assert first is not None
    assert again is not None
    assert (first.attempt, again.attempt, again.message) == (1, 2, first.message)
    assert queue.acknowledge(1)
    assert not queue.acknowledge(1)
    assert taken(queue, 99) == []


def test_a_late_acknowledgement_counts_still() -> None:
    queue = Subscription(size=10, window=1, acknowledge_s=5)
    queue.offer(message(1))
    queue.offer(message(2))
    assert taken(queue, 0) == [1]
    queue.release()
    assert not queue.acknowledge(2)  # it was never sent
    assert queue.acknowledge(1)
    assert taken(queue, 0) == [2]


def test_a_full_queue_drops_the_oldest_that_waits_and_counts_it() -> None:
    queue = Subscription(size=3, window=1, acknowledge_s=5)
    for number in range(1, 4):
        queue.offer(message(number))
    assert taken(queue, 0) == [1]
    queue.offer(message(4))
    assert queue.dropped == 1
    assert queue.acknowledge(1)
    assert taken(queue, 0) == [3]


def test_where_all_were_sent_the_new_one_is_dropped() -> None:
    queue = Subscription(size=2, window=2, acknowledge_s=5)
    queue.offer(message(1))
    queue.offer(message(2))
    assert taken(queue, 0) == [1, 2]
    queue.offer(message(3))
    assert (queue.dropped, len(queue)) == (1, 2)


def test_what_nobody_ever_acknowledges_is_given_up() -> None:
    queue = Subscription(size=2, window=2, acknowledge_s=1)
    queue.offer(message(1))
    assert [taken(queue, now_s) for now_s in range(MAX_ATTEMPTS + 2)] == [[1]] * MAX_ATTEMPTS + [[], []]
    assert (queue.dropped, len(queue)) == (1, 0)


STEPS = st.lists(
    st.one_of(
        st.just(("offer", 0)),
        st.just(("take", 0)),
        st.just(("release", 0)),
        st.tuples(st.just("acknowledge"), st.integers(1, 30)),
        st.tuples(st.just("wait"), st.integers(1, 7)),
    ),
    max_size=120,
)


@given(STEPS, st.integers(1, 6), st.integers(1, 6))
def test_every_message_is_held_acknowledged_or_counted_as_dropped(
    steps: list[tuple[str, int]], size: int, window: int
) -> None:
    queue = Subscription(size, window, acknowledge_s=5)
    offered = acknowledged = now_s = 0
    sent: set[int] = set()
    for step, value in steps:
        if step == "offer":
            offered += 1
            queue.offer(message(offered))
        elif step == "take" and (delivery := queue.take(now_s)) is not None:
            sent.add(delivery.message.id)
        elif step == "release":
            queue.release()
        elif step == "acknowledge" and queue.acknowledge(value):
            assert value in sent
            acknowledged += 1
        elif step == "wait":
            now_s += value
        assert len(queue) <= size
        assert offered == acknowledged + queue.dropped + len(queue)
    # And all that is held can be had.
    queue.release()
    while (delivery := queue.take(now_s)) is not None:
        assert queue.acknowledge(delivery.message.id)
    assert len(queue) == 0


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> Iterator[Broker]:
    made = Broker(["decisions", "findings"], Limits(queue=8, subscriptions=2, streams=3), clock)
    yield made
    made.close()


def always() -> bool:
    return True


def test_a_stream_that_ends_gives_back_what_it_was_sent(broker: Broker) -> None:
    stream = broker.stream("decisions", KEY, always)
    thread = threading.Thread(target=lambda: [until_subscribed(broker), publish(broker, 2)])
    thread.start()
    first = next(stream)
    thread.join()
    assert (first.message.id, first.attempt) == (1, 1)
    stream.close()
    again = broker.stream("decisions", KEY, always)
    assert [(one.message.id, one.attempt) for one in (next(again), next(again))] == [(1, 2), (2, 1)]
    assert broker.acknowledge("decisions", KEY, [1, 1, 2, 3]) == 2


def publish(broker: Broker, count: int) -> None:
    for number in range(count):
        broker.publish("decisions", b"%d" % number, "spiffe://x", "")


def until_subscribed(broker: Broker) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if broker.queues():
            return
        deadline.wait(0.01)
    raise AssertionError("nobody subscribed")


def test_a_later_stream_takes_over(broker: Broker) -> None:
    first = broker.stream("decisions", KEY, always)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            next(first)
        except Replaced as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    until_subscribed(broker)
    second = broker.stream("decisions", KEY, always)
    publisher = threading.Thread(target=lambda: [thread.join(), publish(broker, 1)])
    publisher.start()
    assert next(second).message.payload == b"0"
    publisher.join()
    assert len(caught) == 1


def test_streams_and_subscriptions_are_bounded_by_tenant(broker: Broker, clock: Clock) -> None:
    def touch(tenant: str, name: str) -> None:
        stream = broker.stream("decisions", Key(tenant, f"spiffe://{tenant}", name), lambda: False)
        assert list(stream) == []

    touch("acme", "a")
    touch("acme", "b")
    with pytest.raises(Full, match="tenant acme has 2"):
        touch("acme", "c")
    touch("globex", "c")
    publish(broker, 3)
    clock.now_s += 600
    touch("acme", "c")  # the others are forgotten, and what they held is counted
    assert broker.forgotten == 9
    assert [key.name for _, key, _, _ in broker.queues()] == ["c"]


def test_too_many_streams_are_refused(broker: Broker) -> None:
    keys = [Key(f"t{number}", "spiffe://x", "s") for number in range(4)]
    open_streams = [broker.stream("decisions", key, always) for key in keys]
    threads = [threading.Thread(target=next, args=(stream, None)) for stream in open_streams[:3]]
    for thread in threads:
        thread.start()
    pause = threading.Event()
    while broker.streams < 3:
        pause.wait(0.01)
    with pytest.raises(Full, match="3 streams"):
        next(open_streams[3])
    broker.close()
    for thread in threads:
        thread.join()
    assert broker.streams == 0


def test_what_is_unknown_is_named(broker: Broker) -> None:
    with pytest.raises(Unknown, match="topic: 'rumours': give one of decisions, findings"):
        broker.publish("rumours", b"", "spiffe://x", "")
    with pytest.raises(Unknown, match="topic"):
        next(broker.stream("", KEY, always))
    with pytest.raises(Unknown, match="subscription"):
        broker.acknowledge("decisions", KEY, [1])
    assert broker.streams == 0


@pytest.fixture
def bus(dial: Any, callers: Any, broker: Broker) -> tuple[daena_pb2_grpc.BusStub, Meter]:
    meter = Meter()
    servicer = Bus(broker, meter, callers.identify)
    channel = dial(lambda server: daena_pb2_grpc.add_BusServicer_to_server(servicer, server))
    return daena_pb2_grpc.BusStub(channel), meter


def test_a_message_goes_from_publisher_to_subscriber_with_both_names(bus: Any, callers: Any, broker: Broker) -> None:
    stub, meter = bus
    callers.become("acme", "analyst")
    stream = stub.Subscribe(daena_pb2.SubscribeRequest(topic="decisions", subscription="outcomes"))
    until_subscribed(broker)
    callers.become("daena", "council")
    sent = daena_pb2.PublishRequest(topic="decisions", payload=b"\x00\xff", traceparent=TRACEPARENT)
    answer = stub.Publish(sent, timeout=60)
    assert (answer.id, answer.subscriptions) == (1, 1)
    found = next(stream)
    assert (found.payload, found.publisher) == (b"\x00\xff", "spiffe://mesh.test/tenant/daena/service/council")
    assert (found.traceparent, found.attempt, found.dropped) == (TRACEPARENT, 1, 0)
    # Another's subscription of the same name is not the caller's.
    mine = daena_pb2.AcknowledgeRequest(topic="decisions", subscription="outcomes", ids=[1])
    with pytest.raises(grpc.RpcError):
        stub.Acknowledge(mine, timeout=60)
    callers.become("acme", "analyst")
    assert stub.Acknowledge(mine, timeout=60).acknowledged == 1
    stream.cancel()
    pause = threading.Event()
    while broker.streams:
        pause.wait(0.01)
    points = {point.name: point.value for point in meter.stats().points}
    assert points["bus.published"] == points["bus.sent"] == points["bus.acknowledged"] == 1
    assert points["bus.queue.dropped"] == points["bus.queue.length"] == points["bus.streams"] == 0


@pytest.mark.parametrize(
    ("code", "field", "method", "request_"),
    [
        ("NOT_FOUND", "topic", "Publish", daena_pb2.PublishRequest(topic="t" * 9000)),
        ("NOT_FOUND", "topic", "Publish", daena_pb2.PublishRequest()),
        ("INVALID_ARGUMENT", "payload", "Publish", daena_pb2.PublishRequest(topic="decisions", payload=b"x" * 65537)),
        ("INVALID_ARGUMENT", "traceparent", "Publish", daena_pb2.PublishRequest(topic="decisions", traceparent="00-x")),
        (
            *("INVALID_ARGUMENT", "traceparent", "Publish"),
            daena_pb2.PublishRequest(topic="decisions", traceparent=TRACEPARENT + "\n"),
        ),
        ("NOT_FOUND", "topic", "Subscribe", daena_pb2.SubscribeRequest(topic="x", subscription="s")),
        ("INVALID_ARGUMENT", "subscription", "Subscribe", daena_pb2.SubscribeRequest(topic="decisions")),
        (
            *("INVALID_ARGUMENT", "subscription", "Subscribe"),
            daena_pb2.SubscribeRequest(topic="decisions", subscription="../" + "s" * 99),
        ),
        ("NOT_FOUND", "topic", "Acknowledge", daena_pb2.AcknowledgeRequest(topic="", subscription="s", ids=[1])),
        (
            *("NOT_FOUND", "subscription", "Acknowledge"),
            daena_pb2.AcknowledgeRequest(topic="decisions", subscription="s", ids=[2**64 - 1]),
        ),
        ("INVALID_ARGUMENT", "ids", "Acknowledge", daena_pb2.AcknowledgeRequest(topic="decisions", subscription="s")),
        (
            *("INVALID_ARGUMENT", "ids", "Acknowledge"),
            daena_pb2.AcknowledgeRequest(topic="decisions", subscription="s", ids=range(257)),
        ),
    ],
)
def test_bad_fields_are_named(
    bus: Any, refused: Callable[..., str], code: str, field: str, method: str, request_: Any
) -> None:
    stub, _ = bus

    def call(request: Any, timeout: float) -> Any:
        answer = getattr(stub, method)(request, timeout=timeout)
        return list(answer) if method == "Subscribe" else answer

    said = refused(grpc.StatusCode[code], call, request_)
    assert said.startswith(f"{field}: ")
    assert said.isascii()
    assert len(said) < 300
