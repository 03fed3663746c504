"""What a served call costs its tenant, whatever its shape and its end, on a server with threads."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.sdk.count import Counter
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
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
        config = SimpleNamespace(bundles={}, service="platform/orders", revision=7, limits=limits)
        self.link: Any = SimpleNamespace(
            config=config, counter=Counter(utc_now), listen=lambda listener: listener(config)
        )
        # Time stands still: nothing fills up meanwhile.
        self.incoming = Incoming(self.link, utc_now, lambda: 100.0)
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
        world.serve(made(handler), Context((KEY, "40")))
    with pytest.raises(RuntimeError):
        world.serve(made(handler), Context())
    assert world.left() == BURST - 140


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
