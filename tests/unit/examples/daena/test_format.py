"""NBMF's formats: what is written is read back or refused, whatever bit of it is another."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.examples.daena.error import Corrupt
from meshwarden.examples.daena.memory import frame, segment
from meshwarden.examples.daena.memory.record import MAX_BYTES, Record, canonical, id_of, parse

AUTHOR = "spiffe://mesh.test/tenant/daena/service/council"
FIELDS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.]{0,20}", fullmatch=True), st.text(), min_size=1, max_size=8)


def record(number: int, text: str = "A lease names its holder and an hour at which it ends.") -> Record:
    return Record("daena", AUTHOR, "decision", {"question": "Who holds the lease?", "text": text, "n": str(number)})


@given(FIELDS, st.text(max_size=30))
def test_the_canonical_bytes_are_the_same_whatever_the_order_and_are_read_back(
    fields: dict[str, str], who: str
) -> None:
    one = Record("daena", who, "decision", fields)
    other = Record("daena", who, "decision", dict(reversed(fields.items())))
    assert canonical(one) == canonical(other)
    assert parse(canonical(one)) == one


@given(st.binary(max_size=3000))
def test_a_frame_gives_back_what_it_was_made_of(raw: bytes) -> None:
    made = frame.encode(raw)
    assert frame.decode(made, id_of(raw)) == raw
    assert len(made) <= len(raw) + 42


@given(st.binary(max_size=300), st.data())
def test_a_frame_of_which_any_bit_is_another_is_refused(raw: bytes, data: st.DataObject) -> None:
    made = bytearray(frame.encode(raw))
    at = data.draw(st.integers(0, 8 * len(made) - 1))
    made[at // 8] ^= 1 << at % 8
    with pytest.raises(Corrupt):
        frame.decode(bytes(made), id_of(raw))


@given(st.binary(max_size=200))
def test_what_is_no_frame_is_refused(found: bytes) -> None:
    with pytest.raises(Corrupt):
        frame.decode(found, bytes(32))


def test_a_frame_that_unpacks_to_more_than_it_says_goes_no_further() -> None:
    raw = bytes(MAX_BYTES)
    made = bytearray(frame.encode(raw))
    made[6:10] = (10).to_bytes(4, "big")
    with pytest.raises(Corrupt, match="don't end where they should"):
        frame.decode(bytes(made), id_of(raw))


@pytest.mark.parametrize(
    "spoil", [b"", b"NBMS", b"NBMS\x01\xff\xff\xff\xff" + bytes(50), b"NBMS\x01\x00\x00\x00\x09abc"]
)
def test_what_is_no_segment_is_refused(tmp_path: Path, spoil: bytes) -> None:
    (tmp_path / "s").write_bytes(spoil)
    with pytest.raises(Corrupt, match="segment s: "):
        segment.read(tmp_path / "s")
    with pytest.raises(Corrupt, match="No such file"):
        segment.read(tmp_path / "t")


def test_the_dictionary_never_changes() -> None:
    # A frame of the first version, as it was written then.
    raw = canonical(record(1))
    old = bytes.fromhex(FRAME_1)
    assert frame.decode(old, id_of(raw)) == raw


FRAME_1 = (
    "4e424d460101000000d4b277d77f2092c6e68f7d927006da0b5624745c6e98886247da3d42ce36e9814078f9980e6269a392"
    "d179d040454b76404fa700932f3051e4a4261683133f3ca9804514f21281b62964961483d502734022b0b849cc03f24a81ec"
    "12607a06a54460c9042c868af590c20f4f7001005c92481d"
)
