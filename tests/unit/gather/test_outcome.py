"""What calls come to."""

import grpc
import pytest

from meshwarden.controlplane.gather.outcome import OUTCOMES, outcome
from meshwarden.v1.report_pb2 import CallStat

ALLOWED, DENIED, LIMITED = CallStat.ALLOWED, CallStat.DENIED, CallStat.LIMITED


@pytest.mark.parametrize(
    ("status", "decision", "wanted"),
    [
        ("OK", ALLOWED, "ok"),
        ("NOT_FOUND", ALLOWED, "client_error"),
        ("CANCELLED", ALLOWED, "client_error"),
        ("RESOURCE_EXHAUSTED", ALLOWED, "client_error"),
        ("PERMISSION_DENIED", ALLOWED, "client_error"),
        ("INTERNAL", ALLOWED, "server_error"),
        ("UNAVAILABLE", ALLOWED, "server_error"),
        ("DEADLINE_EXCEEDED", ALLOWED, "server_error"),
        ("200", ALLOWED, "ok"),
        ("304", ALLOWED, "ok"),
        ("404", ALLOWED, "client_error"),
        ("429", ALLOWED, "client_error"),
        ("500", ALLOWED, "server_error"),
        ("503", ALLOWED, "server_error"),
        ("0", ALLOWED, "server_error"),
        ("PERMISSION_DENIED", DENIED, "denied"),
        ("403", DENIED, "denied"),
        ("429", LIMITED, "limited"),
        ("RESOURCE_EXHAUSTED", LIMITED, "limited"),
        ("RESOURCE_EXHAUSTED", CallStat.THROTTLED, "limited"),
        ("_OTHER", ALLOWED, "client_error"),
    ],
)
def test_whose_fault_it_was(status: str, decision: int, wanted: str) -> None:
    assert outcome(status, decision) == wanted


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_status_comes_to_something(status: grpc.StatusCode) -> None:
    assert outcome(status.name, ALLOWED) in OUTCOMES
