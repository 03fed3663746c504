"""Batches that are packed: what a node packs ill is refused, whatever it would unpack to."""

import pytest
from backports import zstd

from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.api.report import unpacked
from meshwarden.v1.report_pb2 import CallStat, Drop, ExportRequest

BODY = b"spans"
BODY_OF_ANOTHER = ExportRequest(resource_spans=[BODY]).SerializeToString()


def packed(rest: ExportRequest, **fields: object) -> ExportRequest:
    values = {"sequence": 7, "first_sequence": 5, "run_id": "r", **fields}
    return ExportRequest(packed=[zstd.compress(rest.SerializeToString())], **values)  # type: ignore[arg-type]


def test_a_batch_has_what_was_packed_and_what_was_not() -> None:
    drop = Drop(signal="span", count=1)
    found = unpacked(packed(ExportRequest(resource_spans=[BODY]), drops=[drop], resource_logs=[b"log"]))
    assert found == ExportRequest(
        sequence=7, first_sequence=5, run_id="r", drops=[drop], resource_spans=[BODY], resource_logs=[b"log"]
    )
    plain = ExportRequest(sequence=7, resource_spans=[BODY])
    assert unpacked(plain) is plain


@pytest.mark.parametrize(
    "content",
    [
        b"none",
        zstd.compress(BODY)[:-1],
        zstd.compress(b"") + b"more",
        zstd.compress(b"") * 2,
        zstd.compress(b"\xff\xff"),
        zstd.compress(bytes(5 << 20)),
        zstd.compress(ExportRequest(resource_spans=[bytes(1 << 20)] * 4).SerializeToString()),
    ],
)
def test_what_cannot_be_unpacked_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="packed"):
        unpacked(ExportRequest(packed=[zstd.compress(BODY_OF_ANOTHER), content]))


@pytest.mark.parametrize(
    "rest",
    [
        ExportRequest(sequence=9),
        ExportRequest(run_id="another"),
        ExportRequest(drops=[Drop(signal="span", count=1)]),
        ExportRequest(packed=[zstd.compress(b"")]),
        ExportRequest(resource_spans=[bytes((1 << 20) + 1)]),
        ExportRequest(calls=[CallStat(source="s" * 4000)]),
        ExportRequest(calls=[CallStat()] * 8193),
    ],
)
def test_what_is_packed_keeps_to_the_rules_of_the_schema(rest: ExportRequest) -> None:
    with pytest.raises(InvalidRequest):
        unpacked(packed(rest))
