"""Channels that count: whatever way a call is made in, and whatever keeps it from being made."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tests.counted import stats_of

from meshwarden.certs.clock import utc_now
from meshwarden.sdk import outgoing
from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.red.count import Counter as CallCounter

GET = "/o.Orders/Get"
HEADER = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")


class Link:
    last_config = None

    def __init__(self) -> None:
        self.counter, self.denials = CallCounter(utc_now), Denials()

    def statuses(self) -> dict[str, int]:
        return dict(Counter({stat.status: stat.count for stat in stats_of(self.counter.take())}))


class Echo:
    """A channel whose methods return what they are called with."""

    def __getattr__(self, shape: str) -> Callable[..., Any]:
        return lambda method, *args, **kwargs: Echoed()


class Echoed:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    with_call = __call__


class Spans:
    ends, headers, sampled = False, (HEADER,), None

    def client(self, method: str, destination: str) -> "Spans":
        return self

    def end(self, code: grpc.StatusCode, details: str) -> None:
        pass


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr(outgoing, "tracer", Spans)
    return Link()


def counted(link: Any, inner: Any) -> Any:
    return CountedChannel(inner, Outgoing(link, "orders"))


@pytest.mark.parametrize("way", ["__call__", "with_call"])
@pytest.mark.parametrize("shape", ["unary_unary", "stream_unary"])
def test_arguments_are_handed_on_by_place_and_by_name_with_the_headers(link: Link, shape: str, way: str) -> None:
    call = getattr(getattr(counted(link, Echo()), shape)(GET, None, None), way)
    assert call(b"x") == ((b"x",), {"metadata": (HEADER,)})
    assert call(request=b"x", timeout=1) == ((), {"request": b"x", "timeout": 1, "metadata": (HEADER,)})
    assert call(b"x", metadata=(("a", "b"),)) == ((b"x",), {"metadata": [("a", "b"), HEADER]})
    assert call(b"x", 1, (("a", "b"),), None, True) == ((b"x", 1, [("a", "b"), HEADER], None, True), {})
    assert call(b"x", 1, None) == ((b"x", 1, [HEADER]), {})
    own = [("traceparent", "mine")]
    assert call(b"x", metadata=own) == ((b"x",), {"metadata": own})
    assert link.statuses() == {"OK": 6}


def closed() -> grpc.Channel:
    channel = grpc.insecure_channel("unix:/nowhere")
    channel.close()
    return channel


def test_a_call_that_cannot_be_made_is_counted_and_raises_what_grpc_raises(link: Link) -> None:
    channel = counted(link, closed())
    unary = channel.unary_unary(GET)
    for call in (unary, unary.with_call, unary.future, channel.unary_stream(GET)):
        with pytest.raises(ValueError, match=r"(?i)channel"):
            call(b"")
    for call in (channel.stream_unary(GET), channel.stream_stream(GET)):
        with pytest.raises(ValueError, match=r"(?i)channel"):
            call(iter([b""]))
    assert link.statuses() == {"INTERNAL": 6}


def test_a_request_that_cannot_be_written_is_an_answer_and_counts(link: Link) -> None:
    def write(_: Any) -> bytes:
        raise ValueError("no")

    with grpc.insecure_channel("unix:/nowhere") as inner, pytest.raises(grpc.RpcError) as raised:
        counted(link, inner).unary_unary(GET, write)(b"")
    assert raised.value.code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
    assert link.statuses() == {"INTERNAL": 1}


def test_a_channel_is_grpcs(link: Link, tmp_path: Path) -> None:
    with counted(link, grpc.insecure_channel(f"unix:{tmp_path}/s")) as channel:
        assert isinstance(channel, grpc.Channel)
        assert isinstance(channel.unary_unary(GET), grpc.UnaryUnaryMultiCallable)
        assert isinstance(channel.stream_stream(GET), grpc.StreamStreamMultiCallable)
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(GET)(b"", timeout=60)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert link.statuses() == {"UNAVAILABLE": 1}


def test_who_watches_a_channel_is_handed_on(link: Link) -> None:
    # No real channel: one that is closed as long as somebody watches it ends grpc's thread with an exception.
    said: list[Any] = []
    inner = SimpleNamespace(
        subscribe=lambda callback, try_to_connect: said.append((callback, try_to_connect)),
        unsubscribe=said.append,
        close=lambda: said.append("closed"),
    )
    with counted(link, inner) as channel:
        channel.subscribe(print, try_to_connect=True)
        channel.unsubscribe(print)
    assert said == [(print, True), print, "closed"]


async def test_a_channel_of_aio_is_grpcs(link: Any, tmp_path: Path) -> None:
    inner = grpc.aio.insecure_channel(f"unix:{tmp_path}/s")
    async with CountedAioChannel(inner, Outgoing(link, "orders")) as channel:
        assert isinstance(channel, grpc.aio.Channel)
        assert isinstance(channel.unary_unary(GET), grpc.aio.UnaryUnaryMultiCallable)
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE
        for metadata in (None, (("a", "b"),), grpc.aio.Metadata(("a", "b"))):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(GET)(b"", timeout=5, metadata=metadata)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.UsageError):
        channel.unary_unary(GET)(b"")
    assert link.statuses() == {"UNAVAILABLE": 3, "INTERNAL": 1}
