"""When a caller that has gone has run out of time."""

import grpc
import pytest

from meshwarden.sdk.deadline import Deadline

LATE, GONE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED
NEVER_S = 9.2e18  # what grpc's server with threads says of a call without a deadline


@pytest.mark.parametrize(
    ("given_s", "left_s", "code"),
    [
        (1.0, 0.0, LATE),
        (1.0, -1.0, LATE),
        (1.0, 0.003, LATE),
        (1.0, 0.5, GONE),
        (100.0, 0.9, LATE),  # "100S" was 99.1 s
        (100.0, 5.0, GONE),
        (None, None, GONE),
        (NEVER_S, NEVER_S - 5, GONE),
    ],
)
def test_a_deadline_is_known_by_what_is_left_of_it(
    given_s: float | None, left_s: float | None, code: grpc.StatusCode
) -> None:
    assert Deadline(given_s).code(left_s) is code
