"""`tracestate` after a sampling stage: thresholds by the specification, whatever it said before."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshwarden.controlplane.gather.trace.state import NEVER, passed, randomness, threshold_of

QUARTER, HALF = threshold_of(0.25), threshold_of(0.5)
LUCKY, UNLUCKY = b"\0" * 9 + b"\xff" * 7, b"\x01" * 9 + b"\0" * 7


def trace(random: int) -> bytes:
    return b"\xaa" * 9 + random.to_bytes(7, "big")


def test_thresholds_of_the_specification() -> None:
    assert (threshold_of(1), threshold_of(0), HALF) == (0, NEVER, 1 << 55)
    assert passed("", LUCKY, QUARTER) == "ot=th:c"
    assert passed("", LUCKY, threshold_of(0.01)) == "ot=th:fd70a3d70a3d7"
    assert randomness(trace(0x1234)) == 0x1234
    assert passed("", trace(QUARTER), QUARTER) == "ot=th:c"
    assert passed("", trace(QUARTER - 1), QUARTER) is None
    assert passed("", LUCKY, NEVER) is None


@pytest.mark.parametrize(
    ("state", "threshold", "after"),
    [
        ("", 0, "ot=th:0"),
        ("a=b", 0, "ot=th:0,a=b"),
        ("ot=th:c", 0, "ot=th:c"),  # kept for certain here, but a quarter only came so far
        ("ot=th:c", HALF, "ot=th:c"),
        ("ot=th:8", QUARTER, "ot=th:c"),
        ("ot=th:80000000000000", 0, "ot=th:8"),
        ("ot=th:C", 0, "ot=th:c"),
        ("a=b, ot=th:8;rv:fffffffffffff0 ,c=d", QUARTER, "ot=th:c;rv:fffffffffffff0,a=b,c=d"),
        ("ot=p:8;r:62", QUARTER, "ot=th:c;p:8;r:62"),
        ("tenant@ot=th:c", 0, "ot=th:0,tenant@ot=th:c"),
    ],
)
def test_the_highest_threshold_stands(state: str, threshold: int, after: str) -> None:
    assert passed(state, LUCKY, threshold) == after


def test_randomness_that_is_said_goes_before_the_trace_id() -> None:
    assert passed("ot=rv:ffffffffffffff", UNLUCKY, QUARTER) == "ot=th:c;rv:ffffffffffffff"
    assert passed("ot=rv:00000000000000", LUCKY, QUARTER) is None
    assert passed("ot=rv:ff", UNLUCKY, QUARTER) is None  # not the 14 digits that it takes


@pytest.mark.parametrize(
    "state",
    ["ot=th:", "ot=th:zz", "ot=th:000000000000000", "ot=th:-1", "ot=th:c ", "ot=th: c", "ot=th:\u0661", "ot=th:c:8"],
)
def test_an_unreadable_threshold_is_erased(state: str) -> None:
    # "c " is "c" once the list is read.
    assert passed(state, LUCKY, HALF) == ("ot=th:c" if state == "ot=th:c " else "")


def test_a_threshold_that_would_have_rejected_the_span_is_erased() -> None:
    assert passed("ot=th:8,a=b", UNLUCKY, 0) == "a=b"
    assert passed("ot=th:8;rv:00000000000000", LUCKY, 0) == "ot=rv:00000000000000"


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("garbage", "ot=th:0"),
        ("ot", "ot=th:0"),
        ("ot=", "ot=th:0"),
        ("ot=;;:;x", "ot=th:0"),
        ("ot=th:8,ot=th:c", "ot=th:8"),
        ("ot=th:8;th:c", "ot=th:8"),
        ("a=b,a=c", "ot=th:0,a=b"),
        ("a=\x00,b=\n,c=\u00e9,=d,e==,f=g", "ot=th:0,f=g"),
        ("A=b", "ot=th:0"),
        (",,, ,a=b,", "ot=th:0,a=b"),
    ],
)
def test_what_cannot_be_read_is_left_out(state: str, after: str) -> None:
    assert passed(state, LUCKY, 0) == after


def test_a_state_stays_within_its_bounds() -> None:
    many = passed(",".join(f"k{number}=v" for number in range(100)), LUCKY, 0) or ""
    assert many.split(",") == ["ot=th:0", *(f"k{number}=v" for number in range(31))]
    long = passed(",".join(f"k{number}={'v' * 200}" for number in range(10)), LUCKY, 0) or ""
    assert long.count(",") == 2
    assert len(long) <= 512
    own = passed("ot=" + ";".join(f"a{number}:{'x' * 20}" for number in range(50)), LUCKY, QUARTER) or ""
    assert own.startswith("ot=th:c;a0:")
    assert len(own) <= 3 + 256


@given(
    st.text() | st.from_regex(r"(ot=(th|rv|p):[0-9a-fz;:,]*[, ]*)+", fullmatch=True),
    st.binary(min_size=16, max_size=16),
)
@example("ot=th,0=th:", bytes(9) + b"\x80" + bytes(6))
def test_nothing_said_upsets_it_and_a_stage_more_changes_nothing(state: str, trace_id: bytes) -> None:
    after = passed(state, trace_id, HALF)
    if after is None:
        return
    assert passed(after, trace_id, HALF) is not None
    assert len(after) <= 512
    assert after.isprintable()
    own, _, _ = after.partition(",")
    if own.startswith("ot=") and "th:" in own:  # not in what another vendor says
        assert passed(after, trace_id, HALF) == after


@given(st.floats(0, 1), st.floats(0, 1), st.binary(min_size=16, max_size=16))
def test_stages_are_consistent(low: float, high: float, trace_id: bytes) -> None:
    """Whoever keeps less keeps nothing that who keeps more rejects; and two stages keep what the stricter keeps."""
    low, high = sorted((low, high))
    first = passed("", trace_id, threshold_of(high))
    both = None if first is None else passed(first, trace_id, threshold_of(low))
    assert both == passed("", trace_id, threshold_of(low))
