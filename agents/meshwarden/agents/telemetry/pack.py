"""Telemetry as it waits and goes up: packed once, by zstd at its fastest ordinary level.

That takes a fifth of the time of gzip for the same size. A spool holds several times as much of what is packed.
"""

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from meshwarden.sdk.tracing.wire import framed
from meshwarden.v1.report_pb2 import ExportRequest, PackedSpans

_LEVEL: Final = 1
_FIELD: Final = ExportRequest.DESCRIPTOR.fields_by_name["packed"].number
_SPANS_FIELD: Final = ExportRequest.DESCRIPTOR.fields_by_name["packed_spans"].number
_TAGS: Final = (framed(_FIELD, b"")[:1], framed(_SPANS_FIELD, b"")[:1])
_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # Source: RFC 8878 §3.1.1
_HEAD_BYTES: Final = 32
# Less than this gets hardly smaller.
_WORTH_BYTES: Final = 256
# Making one takes as long as packing the counts of forty calls.
_compressor: Final = zstd.ZstdCompressor(_LEVEL)


def packed(payload: bytes) -> bytes:
    """A part of a serialised `ExportRequest` as it is to be kept and sent."""
    if len(payload) < _WORTH_BYTES:
        return payload
    return framed(_FIELD, _compressor.compress(payload, zstd.ZstdCompressor.FLUSH_FRAME))


def packed_spans(payload: bytes, reporter: str, count: int) -> bytes:
    """So many spans of one program, part of a serialised `ExportRequest`, as they are to be kept and sent.

    Args:
        payload: the part, with `resource_spans` alone.
        reporter: what they say as `service.name`.
        count: how many there are.
    """
    if len(payload) < _WORTH_BYTES:
        return payload
    spans = _compressor.compress(payload, zstd.ZstdCompressor.FLUSH_FRAME)
    message = PackedSpans(spans=spans, reporter=reporter, count=count)
    return framed(_SPANS_FIELD, message.SerializeToString())


def unpacked_bytes(payload: bytes) -> int:
    """How large a payload is that may be packed, in its first field."""
    head = payload[:_HEAD_BYTES]
    at = head.find(_MAGIC)
    if not head.startswith(_TAGS) or at < 0:
        return len(payload)
    unpacked = zstd.get_frame_info(head[at:]).decompressed_size or len(payload)
    return unpacked + len(payload) - _end_of_first(head)


def _end_of_first(head: bytes) -> int:
    """Where the first field ends of a message that begins so; its number and its length are varints."""
    length, at = 0, 1
    while head[at] & 0x80:
        length |= (head[at] & 0x7F) << 7 * (at - 1)
        at += 1
    return (length | head[at] << 7 * (at - 1)) + at + 1
