"""Times and spans of time as protobuf carries them: any two numbers, of which most are neither.

Whoever reads such a one as a time, or writes it as JSON, fails. The schema's rules can't say so: they know a moment,
and not the two numbers that it is said by.
"""

import functools
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from meshwarden.controlplane.resources.fault import FieldFault

_TIMESTAMP: Final = "google.protobuf.Timestamp"
_DURATION: Final = "google.protobuf.Duration"
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
_LONGEST_S = 315_576_000_000
_SECOND_NS = 1_000_000_000


def time_faults(message: Message, hidden: str = "", path: str = "") -> Iterator[FieldFault]:
    """Yields each field of a message, at whatever depth, that is to be a time or a span of time and can't be one.

    Args:
        message: the message.
        hidden: the full name of a message whose fields stand in paths without their own name.
        path: where the message is.

    Source: google/protobuf/timestamp.proto and duration.proto.
    """
    for field in _leading_to_times(message.DESCRIPTOR):
        if not field.is_repeated and not message.HasField(field.name):
            continue
        place = path if message.DESCRIPTOR.full_name == hidden else f"{path}.{field.json_name}".lstrip(".")
        value = getattr(message, field.name)
        items = [(f"{place}[{number}]", item) for number, item in enumerate(value)] if field.is_repeated else None
        for at, item in items if items is not None else [(place, value)]:
            if (check := _CHECKS.get(item.DESCRIPTOR.full_name)) is None:
                yield from time_faults(item, hidden, at)
            elif text := check(item):
                yield FieldFault(at, text)


def _timestamp(said: Any) -> str:
    is_one = _FIRST_S <= said.seconds <= _LAST_S and 0 <= said.nanos < _SECOND_NS
    return "" if is_one else "must be a time between the years 1 and 9999"


def _duration(said: Any) -> str:
    is_one = abs(said.seconds) <= _LONGEST_S and abs(said.nanos) < _SECOND_NS and said.seconds * said.nanos >= 0
    return "" if is_one else "must be a span of time of less than 10,000 years"


_CHECKS: Final = {_TIMESTAMP: _timestamp, _DURATION: _duration}


@functools.cache
def _leading_to_times(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields of a message that are times, or messages with some."""
    return tuple(field for field in descriptor.fields if _leads(field, frozenset({descriptor.full_name})))


def _leads(field: FieldDescriptor, above: frozenset[str]) -> bool:
    found = field.message_type
    if found is None or found.GetOptions().map_entry:  # of our maps none holds messages
        return False
    if found.full_name in _CHECKS:
        return True
    below = above | {found.full_name}
    return found.full_name not in above and any(_leads(one, below) for one in found.fields)
