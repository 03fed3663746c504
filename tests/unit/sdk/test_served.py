"""What a served call costs its tenant, whatever its shape and its end, on a server with threads."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.red.count import Counter
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

GET = "/o.Orders/Get"
KEY = "x-meshwarden-cost"
BURST = 1000


class Aborted(Exception):
    pass


class Context:
    """A call's, as far as is looked at."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata
        self.trailing: tuple[tuple[str, str], ...] = ()
        self.ended: tuple[grpc.StatusCode, str] | None = None
        self.callbacks: list[Any] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def send_initial_metadata(self, metadata: Any) -> None:
        pass

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = tuple(metadata)

    def trailing_metadata(self) -> Any:
        return self.trailing

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.ended = (code, details)
        raise Aborted

    def add_callback(self, callback: Any) -> bool:
        self.callbacks.append(callback)
        return True

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None

    def code(self) -> grpc.StatusCode | None:
        return self.ended[0] if self.ended else None

    def details(self) -> str:
        return self.ended[1] if self.ended else ""


class World:
    """A server with threads whose callers are all acme."""

    def __init__(self, spec: RatePolicySpec) -> None:
        limits = ServerLimits(policies=[PolicyLimits(policy="platform/orders", spec=spec)])
        home = SpiffeId.workload("mesh.test", "platform", "orders")
        config = SimpleNamespace(
            federated={},
            spiffe_id=home,
            service="platform/orders",
            revision=7,
            limits=limits,
            deny_list=(),
            access=None,
        )
        self.link: Any = SimpleNamespace(
            config=config, counter=Counter(utc_now), listen=lambda listener: listener(config)
        )
        # Time stands still: nothing fills up meanwhile.
        self.now_s = 100.0
        self.incoming = Incoming(self.link, utc_now, lambda: self.now_s)
        caller = SimpleNamespace(peer=None, source="spiffe://mesh.test/tenant/acme/service/web", tenant="acme")
        callers: Any = SimpleNamespace(identify=lambda context: caller)
        self.incoming._callers = callers
        self.interceptor = IncomingInterceptor(self.incoming)

    def serve(self, handler: Any, context: Context, request: Any = b"") -> Any:
        """Has a call served; what the handler answers."""
        details: Any = SimpleNamespace(method=GET)
        wrapped: Any = self.interceptor.intercept_service(lambda _: handler, details)
        serving = wrapped.unary_unary or wrapped.unary_stream or wrapped.stream_unary or wrapped.stream_stream
        return serving(request, context)

    def left(self) -> int:
        """What the tenant has left, which it takes."""
        limits = self.incoming._limits

        def passes(most: int) -> bool:
            return limits.admit("acme", GET, [(KEY, str(most))]).decision.allowed

        return next((most for most in range(BURST, 0, -1) if passes(most)), 0)


@pytest.fixture
def world() -> World:
    limit = RateLimit(tenant="acme", cost=1, burst=BURST)
    return World(RatePolicySpec(scope=RatePolicySpec.POINT, limits=[limit], reserve=100))


def made(unary: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(unary)


def test_a_handler_says_what_its_call_has_cost(world: World) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        sdk.report_cost(20)
        sdk.report_cost(10)
        return request

    assert world.serve(made(handler), Context()) == b""
    sdk.report_cost(500)  # by nobody's call
    assert world.left() == BURST - 30


def test_trailing_metadata_say_it_as_well(world: World) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(((KEY, "250"),))
        return request

    world.serve(made(handler), Context((KEY, "10")))
    assert world.left() == BURST - 250


def test_one_that_says_nothing_costs_what_was_taken_for_it_even_if_it_fails(world: World) -> None:
    def handler(request: bytes, context: Any) -> bytes:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        world.serve(made(handler), Context((KEY, "140")))
    with pytest.raises(RuntimeError):
        world.serve(made(handler), Context((KEY, "40")))
    assert world.left() == BURST - 240, "no less than is reserved"


def test_a_stream_is_settled_when_its_handler_has_ended_and_not_when_its_caller_goes(world: World) -> None:
    def handler(request: bytes, context: Any) -> Iterator[bytes]:
        yield b"one"
        sdk.report_cost(300)
        yield b"two"
        sdk.report_cost(5)

    context = Context()
    answers = world.serve(grpc.unary_stream_rpc_method_handler(handler), context)
    assert next(answers) == b"one"
    for callback in context.callbacks:
        callback()
    assert next(answers) == b"two"
    assert list(answers) == []
    assert world.left() == BURST - 305


def test_a_stream_that_nobody_reads_to_its_end_is_settled(world: World) -> None:
    def handler(request: bytes, context: Any) -> Iterator[bytes]:
        sdk.report_cost(30)
        yield b"one"
        sdk.report_cost(300)

    answers = world.serve(grpc.unary_stream_rpc_method_handler(handler), Context())
    assert next(answers) == b"one"
    answers.close()
    assert world.left() == BURST - 30


def test_one_that_asks_for_more_than_is_left_is_refused_and_one_that_asks_for_nonsense(world: World) -> None:
    served: list[bytes] = []

    def handler(request: bytes, context: Any) -> bytes:
        served.append(request)
        return request

    for said, code, text in (
        ("1001", grpc.StatusCode.RESOURCE_EXHAUSTED, "rate policy platform/orders limits tenant acme"),
        ("-1", grpc.StatusCode.INVALID_ARGUMENT, "x-meshwarden-cost: give one whole number"),
        ("1e99", grpc.StatusCode.INVALID_ARGUMENT, "x-meshwarden-cost: give one whole number"),
    ):
        context = Context((KEY, said))
        with pytest.raises(Aborted):
            world.serve(made(handler), context)
        assert context.ended is not None
        assert context.ended[0] is code
        assert text in context.ended[1]
    assert not served
    assert world.left() == BURST


def sized() -> World:
    limit = RateLimit(tenant="acme", bytes=1, burst=BURST)
    return World(RatePolicySpec(scope=RatePolicySpec.POINT, limits=[limit]))


def until(condition: Any) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_messages_of_all_shapes_are_weighed() -> None:
    def owed(handler: Any, request: Any) -> float:
        world = sized()
        answer = world.serve(handler, Context(), request)
        assert answer if isinstance(answer, bytes) else all(answer)
        probe = world.incoming._limits.admit("acme", GET)
        probe.weigh(BURST)
        return probe.owed_s()

    unary, fan = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    assert owed(unary(lambda request, context: b"y" * 30), b"x" * 20) == pytest.approx(50)
    assert owed(unary(lambda request, context: request, int, lambda number: b"y" * number), b"12") == pytest.approx(14)
    assert owed(fan(lambda request, context: iter([b"y" * 30] * 3)), b"x" * 20) == pytest.approx(110)
    gather = grpc.stream_unary_rpc_method_handler(lambda requests, context: b"".join(requests))
    assert owed(gather, iter([b"x" * 20] * 2)) == pytest.approx(80)
    both = grpc.stream_stream_rpc_method_handler(lambda requests, context: (one * 2 for one in requests))
    assert owed(both, iter([b"x" * 20] * 2)) == pytest.approx(120)


def test_a_stream_waits_while_something_is_owed_and_goes_on_when_it_is_paid() -> None:
    world, context = sized(), Context()
    answers = world.serve(grpc.unary_stream_rpc_method_handler(lambda *_: iter([b"x" * BURST] * 3)), context)
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(next, answers).result()) == BURST
        watching = len(context.callbacks)
        assert len(pool.submit(next, answers).result()) == BURST
        third = pool.submit(next, answers)
        until(lambda: len(context.callbacks) > watching)
        assert not third.done()
        world.now_s += 2 * BURST
        assert len(third.result(60)) == BURST
        assert list(answers) == []


def test_a_stream_that_waits_ends_with_its_call() -> None:
    world, context, read = sized(), Context(), list[bytes]()

    def handler(requests: Any, _: Any) -> Iterator[bytes]:
        for request in requests:
            read.append(request)
            yield b""

    requests = iter([b"x" * (BURST + 1)] * 5)
    answers = world.serve(grpc.stream_stream_rpc_method_handler(handler), context, requests)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, answers)
        until(lambda: len(context.callbacks) > 1)
        assert len(read) == 1, "the next is asked for when the first is paid"
        for callback in context.callbacks:
            callback()
        assert len(waiting.result(60)) == 5, "grpc would end them"
