"""What becomes a status, and what is a defect."""

import grpc
from grpc._cython import cygrpc
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.api.errors import fitting, status_of
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.v1.resource_service_pb2 import ApplyResponse, Fault


def test_a_caller_that_is_gone_is_no_defect_of_ours() -> None:
    lost = ExceptionGroup("stream", [cygrpc.ExecuteBatchError("execute_batch")])
    assert (status_of(lost) or ())[0] is grpc.StatusCode.UNAVAILABLE
    assert status_of(ExceptionGroup("stream", [KeyError("x")])) is None


@given(st.lists(st.builds(FieldFault, st.text(), st.text(max_size=2000))), st.integers(200, 5000))
def test_faults_fit_and_those_that_do_not_are_counted(faults: list[FieldFault], most_bytes: int) -> None:
    told, whole = fitting(faults, most_bytes), [clipped(fault) for fault in faults]
    if told != whole:
        *told, last = told
        assert last == FieldFault("", f"and {len(faults) - len(told)} more: mend these first")
        assert told == whole[: len(told)]
    answer = ApplyResponse(faults=[Fault(field=fault.field, message=fault.message) for fault in told])
    assert answer.ByteSize() <= most_bytes


def clipped(fault: FieldFault) -> FieldFault:
    """A fault without what is too long of it."""
    field, message = (text if len(text) <= 600 else f"{text[:599]}…" for text in (fault.field, fault.message))
    return FieldFault(field, message)
