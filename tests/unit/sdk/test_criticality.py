"""How much a call matters: what callers say, hostile ones too, and how it goes on to the calls made for theirs."""

import contextvars
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.certs.clock import utc_now
from meshwarden.sdk.aio_handler import ServedCall
from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.criticality import FREE_OF_BUCKET, FREE_OF_CONCURRENCY, KEY, Criticality
from meshwarden.sdk.incoming import served_call
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.red.count import Counter, Known
from meshwarden.sdk.tracing.trace import with_headers

PARENT = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")


def alone(work: Callable[[], Any]) -> Any:
    return contextvars.Context().run(work)


@pytest.mark.parametrize("level", Criticality)
def test_a_level_that_a_caller_names_is_that(level: Criticality) -> None:
    assert criticality.find([("a", "b"), (KEY, level.name)]) is level


@pytest.mark.parametrize(
    "values",
    [(), ("",), ("critical",), (" SHEDDABLE",), ("SHEDDABLE\n",), (b"SHEDDABLE",), ("3",), ("CRITICAL", "SHEDDABLE"),
     ("SHEDDABLE", "x"), ("x", "SHEDDABLE"), ("__class__",), ("X" * 8000,)],
)  # fmt: skip
def test_what_names_no_level_is_as_if_it_were_not_there(values: tuple[str | bytes, ...]) -> None:
    assert criticality.find([(KEY, value) for value in values]) is None


@given(st.lists(st.tuples(st.sampled_from([KEY, "a"]), st.one_of(st.text(max_size=20), st.binary(max_size=20)))))
def test_any_metadata_is_survived(metadata: list[tuple[str, str | bytes]]) -> None:
    names = {value for name, value in metadata if name == KEY}
    found = criticality.find(metadata)
    assert found is None or names == {found.name}


def test_more_must_be_free_for_what_matters_less() -> None:
    for parts in (FREE_OF_BUCKET, FREE_OF_CONCURRENCY):
        assert list(parts) == list(Criticality)
        assert sorted(parts.values()) == list(parts.values())
        assert all(0 <= part < 1 for part in parts.values())
    assert FREE_OF_BUCKET[criticality.DEFAULT] == 0  # who says nothing has all of what was promised


def test_one_thread_serves_one_call_after_another() -> None:
    def serve() -> None:
        criticality.serve([(KEY, "SHEDDABLE")])
        assert criticality.headers() == ((KEY, "SHEDDABLE"),)
        criticality.serve([])
        assert criticality.current() is None
        assert criticality.headers() == ()

    alone(serve)


def test_a_program_says_it_of_all_the_calls_that_it_makes() -> None:
    link: Any = SimpleNamespace(last_config=None, counter=Counter(utc_now))

    def say() -> tuple[Any, Any, Any]:
        outgoing = Outgoing(link, "orders")
        with criticality.calls_are(Criticality.SHEDDABLE_PLUS):
            inside = outgoing.begin("/o.Orders/Get").headers
            with criticality.calls_are(Criticality.CRITICAL_PLUS):
                deeper = outgoing.begin("/o.Orders/Get").headers
        return inside, deeper, outgoing.begin("/o.Orders/Get").headers

    inside, deeper, outside = (dict(headers) for headers in alone(say))
    assert inside[KEY] == "SHEDDABLE_PLUS"
    assert deeper[KEY] == "CRITICAL_PLUS"
    assert KEY not in outside


def test_what_the_program_says_of_one_call_stands() -> None:
    ours = (PARENT, ("tracestate", "k=v"), (KEY, "SHEDDABLE"))
    assert with_headers([(KEY, "CRITICAL")], ours) == [(KEY, "CRITICAL"), PARENT, ("tracestate", "k=v")]
    own = ("traceparent", "mine")
    assert with_headers([own], ours) == [own, (KEY, "SHEDDABLE")]


def test_an_aio_servers_calls_go_on_as_what_they_came_as() -> None:
    link: Any = SimpleNamespace(last_config=None, counter=Counter(utc_now))
    context: Any = SimpleNamespace(invocation_metadata=lambda: (("a", "b"), (KEY, "SHEDDABLE")))

    def serve() -> Any:
        ServedCall(link, Known(link.counter, served_call), None, None, "/o.Orders/Get", context)
        return Outgoing(link, "stock").begin("/s.Stock/Get").headers

    assert dict(alone(serve))[KEY] == "SHEDDABLE"
