"""Orders that the council decides about: asked when it must be, never told more than an id, its failures its own."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from meshwarden import sdk
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
from meshwarden.examples.orders.council import Council
from meshwarden.examples.orders.service import Orders
from meshwarden.sdk.error import NotStarted


class Sitting(daena_pb2_grpc.CouncilServicer):
    """A council that decides as it is told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: grpc.StatusCode | None = None

    def Hold(self, request: Any, context: grpc.ServicerContext) -> daena_pb2.Decision:  # noqa: N802
        self.asked.append(request.question)
        if self.refuses is not None:
            context.abort(self.refuses, "spiffe://mesh.test/secret")
        return daena_pb2.Decision(text="Not before it backs off.", record="ab" * 32)


class Shop:
    """Orders with a council."""

    def __init__(self, dial: Callable[..., grpc.Channel]) -> None:
        self.council = Sitting()
        self.dialled: list[str] = []

        def to_council(target: str) -> grpc.Channel:
            self.dialled.append(target)
            return dial(lambda server: daena_pb2_grpc.add_CouncilServicer_to_server(self.council, server))

        self.client = Council("xds:///council.daena", to_council)
        orders = Orders("v1", "a", self.client)
        channel = dial(lambda server: orders_pb2_grpc.add_OrdersServicer_to_server(orders, server))
        self.stub = orders_pb2_grpc.OrdersStub(channel)


@pytest.fixture
def shop(dial: Callable[..., grpc.Channel], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(sdk, "peer_identity", lambda _: SpiffeId.workload("mesh.test", "acme", "web"))
    made = Shop(dial)
    yield made
    made.client.close()


def test_a_review_says_what_was_decided_on_one_channel_that_nothing_else_opens(shop: Shop) -> None:
    assert shop.stub.Get(orders_pb2.GetRequest(id="1"), timeout=60).decision == ""
    assert shop.dialled == []
    for _ in range(2):
        order = shop.stub.Review(orders_pb2.ReviewRequest(id="x-1.a_2"), timeout=60)
        assert (order.id, order.tenant) == ("x-1.a_2", "acme")
        assert (order.decision, order.record) == ("Not before it backs off.", "ab" * 32)
    assert shop.dialled == ["xds:///council.daena"]
    assert all("x-1.a_2" in question for question in shop.council.asked)


@pytest.mark.parametrize("number", ["", "a b", "1\n", "1\nIgnore that", "\u0661", "1?", "x" * 65, "x" * 100_000])
def test_an_id_puts_no_words_into_the_question(shop: Shop, refused: Callable[..., str], number: str) -> None:
    refused(grpc.StatusCode.INVALID_ARGUMENT, shop.stub.Review, orders_pb2.ReviewRequest(id=number))
    assert shop.council.asked == []


@pytest.mark.parametrize("name", ["PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNAVAILABLE"])
def test_a_council_that_refuses_says_nothing_of_who_calls_orders(
    shop: Shop, refused: Callable[..., str], name: str
) -> None:
    shop.council.refuses = grpc.StatusCode[name]
    why = refused(grpc.StatusCode.UNAVAILABLE, shop.stub.Review, orders_pb2.ReviewRequest(id="1"))
    assert why == f"council: {name}"


def test_outside_the_mesh_nothing_is_decided_and_orders_go_on(shop: Shop, refused: Callable[..., str]) -> None:
    def dial(target: str) -> grpc.Channel:
        raise NotStarted(f"{target}: no agent")

    shop.client._dial = dial
    why = refused(grpc.StatusCode.UNAVAILABLE, shop.stub.Review, orders_pb2.ReviewRequest(id="1"))
    assert "no agent" in why
    assert shop.stub.Get(orders_pb2.GetRequest(id="1"), timeout=60).id == "1"
