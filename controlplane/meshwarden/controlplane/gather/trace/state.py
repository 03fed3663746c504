"""How likely a span was to get here, as its `tracestate` says: `ot=th:c` is a quarter.

A threshold is the number of 2**56 equally likely values of randomness that a stage rejects. A stage passes a span whose
randomness is not below the stage's threshold, and writes the highest threshold of all stages so far, so that whoever
counts spans can count those that were rejected as well.

Source: OpenTelemetry specification 1.50, "TraceState Handling" and "TraceState: Probability Sampling" (the equalizing
downstream sampler); W3C Trace Context Level 2, §3.3.
"""

import re
from typing import Final, NamedTuple

NEVER: Final = 1 << 56
"""The threshold that nothing passes."""
_KEY: Final = "ot"
_DIGITS: Final = 14
_TAIL_BYTES: Final = 7
_OT_CHARS: Final = 256
_MEMBERS: Final = 32
_CHARS: Final = 512
_THRESHOLD: Final = re.compile(r"[0-9a-fA-F]{1,14}")
_RANDOMNESS: Final = re.compile(r"[0-9a-fA-F]{14}")
_SUB: Final = re.compile(r"[a-z][a-z0-9]*:[A-Za-z0-9._-]*")
_MEMBER: Final = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


class _Said(NamedTuple):
    """What a `tracestate` says: what of it is OpenTelemetry's, `{sub-key: value}`, and the other members."""

    own: dict[str, str]
    others: list[str]


def threshold_of(ratio: float) -> int:
    """The threshold that passes this share of all traces, from 0 to 1."""
    return round((1 - ratio) * NEVER)


def randomness(trace_id: bytes) -> int:
    """What decides on a trace where nothing else is said; the id has 16 bytes."""
    return int.from_bytes(trace_id[-_TAIL_BYTES:], "big")


def says_randomness(state: str) -> bool:
    """Whether a `tracestate` may say what decides on its span instead of the trace id."""
    return "rv:" in state


def passed(state: str, trace_id: bytes, threshold: int) -> str | None:
    """A span's `tracestate` after a stage; None if the stage rejects the span.

    What can't be read is left out. A span that says nothing of its threshold was not sampled before. One whose
    threshold is unreadable, or would have rejected it, came here nobody knows how likely: it goes on without one.

    Args:
        state: the `tracestate` that the span has come with.
        trace_id: 16 bytes.
        threshold: the stage's; 0 passes all.
    """
    if not state:  # by far the most
        return None if randomness(trace_id) < threshold else f"{_KEY}={_written(threshold)}"
    own, others = _read(state)
    random = int(own["rv"], 16) if "rv" in own else randomness(trace_id)
    if random < threshold:
        return None
    before = _threshold(own.pop("th", "0"))
    subs = [] if before is None or random < before else [_written(max(before, threshold))]
    if "rv" in own:
        subs.append(f"rv:{own.pop('rv')}")
    subs += [f"{key}:{value}" for key, value in own.items()]
    return _joined(subs, others)


def _read(state: str) -> _Said:
    own: dict[str, str] = {}
    others: dict[str, str] = {}
    is_seen = False
    for part in state.split(","):
        member = part.strip(" \t")
        key = member.partition("=")[0]
        if key == _KEY and not is_seen:
            is_seen = True
            own = _subs(member.partition("=")[2])
        elif key != _KEY and _MEMBER.fullmatch(member):
            others.setdefault(key, member)
    return _Said(own, list(others.values()))


def _subs(value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for sub in value.split(";"):
        key, _, text = sub.partition(":")
        is_sound = _SUB.fullmatch(sub) and (key != "rv" or _RANDOMNESS.fullmatch(text))
        if is_sound or key == "th":  # an unreadable threshold is not the same as none
            found.setdefault(key, text)
    return found


def _threshold(text: str) -> int | None:
    return int(text.ljust(_DIGITS, "0"), 16) if _THRESHOLD.fullmatch(text) else None


def _written(threshold: int) -> str:
    return f"th:{f'{threshold:0{_DIGITS}x}'.rstrip('0') or '0'}"


def _joined(subs: list[str], others: list[str]) -> str:
    """A `tracestate` within its bounds; what was changed stands first. Source: W3C Trace Context §3.5."""
    while len(";".join(subs)) > _OT_CHARS:
        subs.pop()
    members = [f"{_KEY}={';'.join(subs)}", *others] if subs else list(others)
    while len(members) > _MEMBERS or (len(members) > 1 and len(",".join(members)) > _CHARS):
        members.pop()
    return ",".join(members)
