"""What regions tell each other of traces that they keep: once, for a while, page by page, and bounded."""

import pytest

from meshwarden.controlplane.gather.tail import word as tail_word
from meshwarden.controlplane.gather.tail.word import PAGE, Word, ids_of


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ids(*numbers: int) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(16, "big") for number in numbers)


def test_each_is_told_once_and_after_a_restart_anew() -> None:
    word = Word(Clock())
    for trace_id in ids(1, 2):
        word.tell(trace_id)
    first = word.told("", 0)
    assert (first.sequence, first.trace_ids) == (2, ids(1, 2))
    assert word.told(first.epoch, 2) == (first.epoch, 2, ())
    word.tell(ids(3)[0])
    assert word.told(first.epoch, 2).trace_ids == ids(3)
    assert word.told(first.epoch, 2**64 - 1).trace_ids == ()
    again = Word(Clock())
    again.tell(ids(9)[0])
    assert again.told(first.epoch, 3).trace_ids == ids(9)


def test_what_is_told_is_of_the_last_minute_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    word = Word(clock)
    word.tell(ids(1)[0])
    clock.now_s = 61.0
    for number in range(2, PAGE + 4):
        word.tell(ids(number)[0])
    page = word.told("", 0)
    assert (len(page.trace_ids), page.trace_ids[0]) == (PAGE, ids(2)[0])
    assert word.told(page.epoch, page.sequence).trace_ids == ids(PAGE + 2, PAGE + 3)
    monkeypatch.setattr(tail_word, "MAX_HEARD", 2)
    for trace_id in ids(1, 2, 1, 3):
        word.hear(trace_id)
    assert [word.has_heard(trace_id) for trace_id in ids(1, 2, 3)] == [True, False, True]
    clock.now_s += 61.0
    assert not word.has_heard(ids(1)[0])


@pytest.mark.parametrize("packed", [b"x", bytes(17), bytes(16 * (PAGE + 1))])
def test_what_is_no_list_of_ids_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="bytes of trace ids"):
        ids_of(packed)
    assert ids_of(b"") == []
