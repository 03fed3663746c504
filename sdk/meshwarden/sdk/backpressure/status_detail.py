"""The details of a refusal by a limit, as gRPC carries them: a google.rpc.Status.

Written and read by hand, field by field: its stubs would be one more package for every application.

Source: google/rpc/status.proto, google/rpc/error_details.proto; gRPC's PROTOCOL-HTTP2, "Status-Details-Bin".
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

KEY: Final = "grpc-status-details-bin"
_TYPES: Final = "type.googleapis.com/google.rpc."
_MOST_S: Final = 3600.0


def limited(code: int, message: str, retry_after_s: float | None, subject: str, description: str) -> bytes:
    """A Status with a RetryInfo, unless there is no use in that, and a QuotaFailure of one violation.

    Args:
        code: the status code's number.
        message: the status message, the same that the call ends with.
        retry_after_s: when to try again; an hour at the most. None: never.
        subject: whose limit it is.
        description: which limit it is.
    """
    violation = _field(1, subject.encode()) + _field(2, description.encode())
    details = [Any(type_url=_TYPES + "QuotaFailure", value=_field(1, violation))]
    if retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(min(max(retry_after_s, 0.0), _MOST_S) * 1e9))
        details.insert(0, Any(type_url=_TYPES + "RetryInfo", value=_field(1, delay.SerializeToString())))
    head = bytes([1 << 3, code]) + _field(2, message.encode())
    return head + b"".join(_field(3, detail.SerializeToString()) for detail in details)


def retry_delay_s(details: bytes) -> float | None:
    """When to try again, in seconds, as a Status has it; None if it doesn't say, or is none."""
    try:
        for item in _parts(details, 3):
            detail = Any.FromString(item)
            if detail.type_url == _TYPES + "RetryInfo":
                for body in _parts(detail.value, 1):
                    delay = Duration.FromString(body)
                    return max(0.0, delay.seconds + delay.nanos / 1e9)
    except (DecodeError, ValueError):
        return None
    return None


def _parts(message: bytes, wanted: int) -> Iterator[bytes]:
    """The fields of that number that are text, bytes or messages.

    Raises:
        ValueError: it is no message.
    """
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, at = _read_varint(message, at)
            continue
        if kind == 2:
            length, at = _read_varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(message):
            raise ValueError("it ends too soon")
        if number == wanted and kind == 2:
            yield message[at : at + length]
        at += length


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number, and where what follows begins."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("no number")


def _field(number: int, body: bytes) -> bytes:
    """A field of text, bytes or a message."""
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
