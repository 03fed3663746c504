"""How durations are spread: counts of buckets, each 2 % wide, which add up and tell quantiles to within 1 %.

    counts = Counter()
    counts[bucket_of(0.0123)] += 1
    quantiles(counts, [0.5, 0.99])      # [0.0123, 0.0123], give or take 1 %
    folded(counts)                      # [0, 0, 1, …]: by BOUNDS_S, exactly

The limits of the buckets include the bounds that OpenTelemetry recommends. What takes 0.1 ms or less shares a bucket,
and so does what takes more than 1000 s. Errors: ValueError, for counts that another has sent.

Source: OpenTelemetry semantic conventions 1.44, `rpc.server.call.duration`, for BOUNDS_S; Masson, Rim and Lee,
"DDSketch" (VLDB 2019) §2, for the error of a quantile.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

from meshwarden.v1 import report_pb2

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of the buckets that Prometheus is shown; a last one has none."""
_RATIO: Final = 1.02
_ENDS_S: Final = (0.0001, *BOUNDS_S, 100.0, 1000.0)


def _limits() -> tuple[float, ...]:
    found = [_ENDS_S[0]]
    for low, high in pairwise(_ENDS_S):
        steps = math.ceil(math.log(high / low) / math.log(_RATIO))
        found += [low * (high / low) ** (step / steps) for step in range(1, steps)]
        found.append(high)
    return tuple(found)


LIMITS_S: Final = _limits()
"""The upper limit of each bucket, itself included; a last bucket has none."""
# The duration whose relative distance to both limits of a bucket is the same.
_MIDDLES_S: Final = (
    LIMITS_S[0] / 2,
    *(2 * low * high / (low + high) for low, high in pairwise(LIMITS_S)),
    LIMITS_S[-1],
)
_FOLDS: Final = (*(bisect_left(BOUNDS_S, limit) for limit in LIMITS_S), len(BOUNDS_S))


def bucket_of(duration_s: float) -> int:
    """Returns the number of the bucket that a duration falls into."""
    return bisect_left(LIMITS_S, duration_s)


def bound_of(duration_s: float) -> int:
    """Returns the number of the bucket of BOUNDS_S that a duration falls into."""
    return bisect_left(BOUNDS_S, duration_s)


def folded(counts: Mapping[int, int]) -> list[int]:
    """Returns how many fall into each bucket of BOUNDS_S, and into a last one without bound."""
    found = [0] * (len(BOUNDS_S) + 1)
    for bucket, count in counts.items():
        found[_FOLDS[bucket]] += count
    return found


def quantiles(counts: Mapping[int, int], shares: Sequence[float]) -> list[float]:
    """Returns durations in seconds that shares of the calls, 0 to 1 each, do not exceed; 0.0 where there are none."""
    if not counts:
        return [0.0] * len(shares)
    buckets = sorted(counts)
    running = list(accumulate(map(counts.__getitem__, buckets)))
    return [_MIDDLES_S[buckets[bisect_left(running, max(1, math.ceil(running[-1] * share)))]] for share in shares]


def to_proto(counts: Mapping[int, int]) -> report_pb2.Histogram:
    """Returns the counts as a message."""
    ordered = sorted(counts.items())
    return report_pb2.Histogram(buckets=[bucket for bucket, _ in ordered], counts=[count for _, count in ordered])


def from_proto(message: report_pb2.Histogram) -> dict[int, int]:
    """Reads counts.

    Raises:
        ValueError: a bucket has no count, is there twice or doesn't exist, or a count is 0.
    """
    # Sliced: protobuf makes a list of them at once, and takes three times as long to hand them out one by one.
    buckets, counts = message.buckets[:], message.counts[:]
    if len(buckets) != len(counts):
        raise ValueError(f"{len(buckets)} buckets and {len(counts)} counts")
    found = dict(zip(buckets, counts, strict=True))
    if len(found) != len(buckets):
        raise ValueError("a bucket is there twice")
    if found and (max(found) > len(LIMITS_S) or min(counts) < 1):
        raise ValueError(f"buckets are numbered 0 to {len(LIMITS_S)} and counts are positive")
    return found
