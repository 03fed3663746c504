"""Batches that are packed: what a node packs ill is refused, whatever it would unpack to."""

import pytest
from backports import zstd

from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.api.report import parts
from meshwarden.v1.report_pb2 import CallStat, CallTable, Drop, ExportRequest, PackedSpans

BODY = b"spans"
BODY_OF_ANOTHER = ExportRequest(resource_spans=[BODY]).SerializeToString()


def packed(rest: ExportRequest, **fields: object) -> ExportRequest:
    values = {"sequence": 7, "first_sequence": 5, "run_id": "r", **fields}
    return ExportRequest(packed=[zstd.compress(rest.SerializeToString())], **values)  # type: ignore[arg-type]


def test_what_was_packed_comes_in_parts() -> None:
    first, second = ExportRequest(resource_spans=[BODY]), ExportRequest(resource_logs=[b"log"])
    batch = packed(first, resource_spans=[b"plain"])
    batch.packed.append(zstd.compress(second.SerializeToString()))
    assert list(parts(batch)) == [first, second]
    assert list(parts(ExportRequest(sequence=7, resource_spans=[BODY]))) == []


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
        list(parts(ExportRequest(packed=[zstd.compress(BODY_OF_ANOTHER), content])))


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
        list(parts(packed(rest)))


def spans(content: bytes) -> ExportRequest:
    return ExportRequest(packed_spans=[PackedSpans(spans=content, reporter="web.acme", count=1)])


def test_packed_spans_are_a_part_for_who_reads_them() -> None:
    batch = spans(zstd.compress(BODY_OF_ANOTHER))
    assert list(parts(batch)) == [ExportRequest(resource_spans=[BODY])]
    assert list(parts(batch, reads_spans=False)) == []
    assert list(parts(spans(b"none"), reads_spans=False)) == [], "nobody unpacks them"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"none",
        zstd.compress(bytes(5 << 20)),
        zstd.compress(ExportRequest(resource_logs=[b"log"]).SerializeToString()),
        zstd.compress(ExportRequest(call_tables=[CallTable()]).SerializeToString()),
        zstd.compress(ExportRequest(sequence=9).SerializeToString()),
        zstd.compress(spans(zstd.compress(b"")).SerializeToString()),
    ],
)
def test_so_is_what_is_packed_as_spans_and_are_none(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="packed_spans"):
        list(parts(spans(content)))


def test_spans_and_the_rest_share_one_bound() -> None:
    half = zstd.compress(ExportRequest(resource_spans=[bytes(1 << 20)] * 2).SerializeToString())
    batch = spans(half)
    batch.packed.append(half)
    with pytest.raises(InvalidRequest, match="packed_spans"):
        list(parts(batch))


@pytest.mark.parametrize("field", ["resource_spans", "resource_metrics", "resource_logs"])
def test_all_parts_together_keep_to_the_rules_of_the_schema(field: str) -> None:
    one = zstd.compress(ExportRequest(**{field: [b""] * 4096}).SerializeToString())  # type: ignore[arg-type]
    assert len(list(parts(ExportRequest(packed=[one, one])))) == 2
    with pytest.raises(InvalidRequest, match="8192"):
        list(parts(ExportRequest(packed=[one, one], **{field: [b""]})))  # type: ignore[arg-type]
