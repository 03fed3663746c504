import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.backpressure.status_detail import limited


@given(st.text(max_size=300), st.floats(0, 3600), st.text(max_size=300))
def test_it_is_what_google_rpc_reads(message: str, wait_s: float, subject: str) -> None:
    status = status_pb2.Status.FromString(limited(8, message, wait_s, subject, "limit"))
    assert (status.code, status.message) == (8, message)
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    assert status.details[0].Unpack(retry)
    assert status.details[1].Unpack(quota)
    assert retry.retry_delay.ToNanoseconds() / 1e9 == pytest.approx(wait_s, abs=1e-9)
    (violation,) = quota.violations
    assert (violation.subject, violation.description) == (subject, "limit")


@pytest.mark.parametrize(("wait_s", "told"), [(-1.0, 0), (float("inf"), 3600)])
def test_an_absurd_wait_is_bounded(wait_s: float, told: int) -> None:
    retry = error_details_pb2.RetryInfo()
    status_pb2.Status.FromString(limited(8, "m", wait_s, "s", "d")).details[0].Unpack(retry)
    assert retry.retry_delay.seconds == told
