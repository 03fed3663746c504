"""What becomes a status, and what is a defect."""

import grpc
from grpc._cython import cygrpc

from meshwarden.controlplane.api.errors import status_of


def test_a_caller_that_is_gone_is_no_defect_of_ours() -> None:
    lost = ExceptionGroup("stream", [cygrpc.ExecuteBatchError("execute_batch")])
    assert (status_of(lost) or ())[0] is grpc.StatusCode.UNAVAILABLE
    assert status_of(ExceptionGroup("stream", [KeyError("x")])) is None
