"""The details of a refusal by a limit, as gRPC carries them: a google.rpc.Status.

Written by hand, field by field: its stubs would be one more package for every application.

Source: google/rpc/status.proto, google/rpc/error_details.proto; gRPC's PROTOCOL-HTTP2, "Status-Details-Bin".
"""

from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

KEY: Final = "grpc-status-details-bin"
_TYPES: Final = "type.googleapis.com/google.rpc."
_MOST_S: Final = 3600.0


def limited(code: int, message: str, retry_after_s: float, subject: str, description: str) -> bytes:
    """A Status with a RetryInfo and a QuotaFailure of one violation.

    Args:
        code: the status code's number.
        message: the status message, the same that the call ends with.
        retry_after_s: when to try again; an hour at the most.
        subject: whose limit it is.
        description: which limit it is.
    """
    delay = Duration()
    delay.FromNanoseconds(round(min(max(retry_after_s, 0.0), _MOST_S) * 1e9))
    violation = _field(1, subject.encode()) + _field(2, description.encode())
    details = (
        Any(type_url=_TYPES + "RetryInfo", value=_field(1, delay.SerializeToString())),
        Any(type_url=_TYPES + "QuotaFailure", value=_field(1, violation)),
    )
    head = bytes([1 << 3, code]) + _field(2, message.encode())
    return head + b"".join(_field(3, detail.SerializeToString()) for detail in details)


def _field(number: int, body: bytes) -> bytes:
    """A field of text, bytes or a message."""
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
