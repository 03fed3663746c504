"""Batches held against the schema's rules the fast way: whatever passes there keeps them, by protovalidate's word."""

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.resources.batch import keeps_rules
from meshwarden.controlplane.resources.validate import rule_faults, schema
from meshwarden.v1.report_pb2 import CallStat, CallTable, Drop, Exemplar, ExportRequest, PackedSpans

_SIZES = [0, 1, 7, 8, 16, 17, 32, 63, 64, 65, 127, 128, 513, 4096, 4097]
_VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: st.sampled_from(_SIZES),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 4),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def faults(message: Message) -> list[Any]:
    """Protovalidate's own word."""
    return schema().violations(message.DESCRIPTOR.full_name, message.SerializeToString())


def holds(message: Message) -> bool:
    return not faults(message)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, kind: type[Message]) -> Message:
    """Any message, with fields that nobody has thought of yet; sizes are about the bounds that there are."""
    made: Any = kind()
    for field in descriptor.fields:
        count = draw(st.integers(0, 2))
        if not count:
            continue
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for _ in range(count if field.is_repeated else 1):
                into = getattr(made, field.name).add() if field.is_repeated else getattr(made, field.name)
                into.MergeFrom(draw(messages(field.message_type, type(into))))
            continue
        values = [_value(field, draw(_VALUES.get(field.cpp_type, st.integers(0, 2**31 - 1)))) for _ in range(count)]
        if field.is_repeated:
            getattr(made, field.name).extend(values)
        else:
            setattr(made, field.name, values[0])
    return made  # type: ignore[no-any-return]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return value
    return b"x" * value if field.type == FieldDescriptor.TYPE_BYTES else "x" * value


@given(messages(ExportRequest.DESCRIPTOR, ExportRequest))
def test_what_passes_the_fast_way_keeps_the_rules(batch: ExportRequest) -> None:
    if keeps_rules(batch, holds):
        assert not faults(batch)
    assert [fault.field for fault in rule_faults(batch)] == [] or faults(batch)
    assert bool(rule_faults(batch)) == bool(faults(batch))


def test_what_agents_send_passes_the_fast_way() -> None:
    table = CallTable(kinds=[b"k" * 4096], exemplars=[Exemplar(trace_id=b"t" * 16, span_id=b"s" * 8)])
    batch = ExportRequest(
        run_id="r" * 64,
        resource_spans=[bytes(1 << 20)],
        resource_logs=[b""] * 8192,
        call_tables=[table] * 3,
        packed_spans=[PackedSpans(spans=b"z", reporter="r" * 127, count=count) for count in (1, 4096)],
        drops=[Drop(signal="span", count=3)],
    )
    assert keeps_rules(batch, holds)
    assert not faults(batch)


@pytest.mark.parametrize(
    "batch",
    [
        ExportRequest(run_id="r" * 65),
        ExportRequest(drops=[Drop()] * 257),
        ExportRequest(drops=[Drop(tenant="t" * 64)]),
        ExportRequest(resource_spans=[b"", bytes((1 << 20) + 1)]),
        ExportRequest(resource_metrics=[bytes((1 << 20) + 1)]),
        ExportRequest(resource_logs=[b""] * 8193),
        ExportRequest(packed=[b""] * 8193),
        ExportRequest(packed_spans=[PackedSpans(count=1)] * 8193),
        ExportRequest(packed_spans=[PackedSpans(count=1), PackedSpans()]),
        ExportRequest(packed_spans=[PackedSpans(count=4097)]),
        ExportRequest(packed_spans=[PackedSpans(count=1, reporter="r" * 128)]),
        ExportRequest(calls=[CallStat(status="x" * 33)]),
        ExportRequest(call_tables=[CallTable()] * 8193),
        ExportRequest(call_tables=[CallTable(), CallTable(kinds=[b"", b"k" * 4097])]),
        ExportRequest(call_tables=[CallTable(kinds=[b""] * 8193)]),
        ExportRequest(call_tables=[CallTable(exemplars=[Exemplar(trace_id=b"t" * 16)])]),
        ExportRequest(call_tables=[CallTable(exemplars=[Exemplar(trace_id=b"t" * 15, span_id=b"s" * 8)])]),
    ],
)
def test_what_breaks_a_rule_does_not(batch: ExportRequest) -> None:
    assert faults(batch)
    assert not keeps_rules(batch, holds)
    assert rule_faults(batch)
