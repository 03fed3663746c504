"""What makes a trace worth keeping."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from meshwarden.controlplane.gather.tail.policy import TailPolicy, reason

CLIENT, SERVER, INTERNAL = Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL
MS = 1_000_000


def span(kind: Any = SERVER, *, error: bool = False, took_ms: int = 1) -> Span:
    made = Span(kind=kind, start_time_unix_nano=1000 * MS, end_time_unix_nano=(1000 + took_ms) * MS)
    if error:
        made.status.code = Status.STATUS_CODE_ERROR
    return made


def said(key: str, value: str | int, kind: Any = SERVER, *, error: bool = False) -> Span:
    made = span(kind, error=error)
    told = AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
    made.attributes.append(KeyValue(key=key, value=told))
    return made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (span(), ""),
        (span(error=True), "error"),
        (span(INTERNAL, error=True), "error"),
        (said("rpc.response.status_code", "OK"), ""),
        (said("rpc.response.status_code", "OK", error=True), "error"),
        (said("rpc.response.status_code", "INTERNAL"), "error"),
        (said("rpc.response.status_code", "UNKNOWN", CLIENT), "error"),
        (said("rpc.response.status_code", "NOT_FOUND"), ""),
        (said("rpc.response.status_code", "NOT_FOUND", CLIENT, error=True), ""),
        (said("rpc.response.status_code", "NOT_FOUND", error=True), "error"),
        (said("rpc.response.status_code", "PERMISSION_DENIED"), "denied"),
        (said("rpc.response.status_code", "RESOURCE_EXHAUSTED", CLIENT, error=True), "limited"),
        (said("rpc.grpc.status_code", 14), "error"),
        (said("rpc.grpc.status_code", 5), ""),
        (said("grpc.status_code", "7"), "denied"),
        (said("grpc.status_code", "0"), ""),
        (said("http.status_code", "200"), ""),
        (said("http.status_code", "404", CLIENT, error=True), ""),
        (said("http.status_code", "403"), "denied"),
        (said("http.response.status_code", 429), "limited"),
        (said("http.response.status_code", 503), "error"),
        (said("http.status_code", "0", CLIENT), "error"),
        (said("rpc.response.status_code", "INTERNAL", INTERNAL), ""),  # it tells of no call of its own
    ],
)
def test_reasons(made: Span, why: str) -> None:
    assert reason(made, (None, None)) == why


def test_a_status_of_grpc_goes_before_one_of_http() -> None:
    made = said("http.status_code", "200")
    made.attributes.append(KeyValue(key="grpc.status_code", value=AnyValue(string_value="13")))
    assert reason(made, (None, None)) == "error"


def test_slow_is_what_takes_longer_than_the_policy_or_an_objective_says() -> None:
    slow_after = {("acme", "web"): 0.05}
    policy = TailPolicy(ratio=0, slow_s=0.2, slow_after=lambda *service: slow_after.get(service))
    web, other = policy.limits("acme", "web"), policy.limits("acme", "other")
    assert [reason(span(SERVER, took_ms=took), web) for took in (50, 51)] == ["", "slow"]
    assert [reason(span(CLIENT, took_ms=took), web) for took in (51, 200, 201)] == ["", "", "slow"]
    assert [reason(span(SERVER, took_ms=took), other) for took in (51, 200, 201)] == ["", "", "slow"]
    assert reason(span(took_ms=10**6), TailPolicy(ratio=0).limits("acme", "web")) == ""
    assert reason(span(took_ms=-500), web) == ""


HOSTILE = st.sampled_from(["", "9" * 5000, "\u0667", "-1", "\x00", "1e9", "OK\n", "²"]) | st.text(max_size=50)


@given(HOSTILE, st.sampled_from(["rpc.response.status_code", "grpc.status_code", "http.status_code"]))
def test_no_status_upsets_it(text: str, key: str) -> None:
    assert reason(said(key, text), (None, None)) in ("", "error", "denied", "limited")


def test_a_status_that_is_no_text_says_nothing() -> None:
    made = span()
    made.attributes.append(KeyValue(key="rpc.response.status_code", value=AnyValue(array_value=ArrayValue())))
    made.attributes.append(KeyValue(key="http.status_code"))
    assert reason(made, (None, None)) == ""


def test_tenants_have_shares_of_their_own() -> None:
    policy = TailPolicy(ratio=0.5, tenants={"acme": 1.0, "globex": 0.0})
    assert [policy.threshold(tenant) for tenant in ("acme", "other", "globex")] == [0, 1 << 55, 1 << 56]
