"""What a rate policy counts."""

from typing import Any, Final, Literal, TypeAlias

from meshwarden.v1.resources_pb2 import RatePolicySpec

Unit: TypeAlias = 'Literal["requests", "bytes", "cost", "concurrent"]'
REQUESTS: Final = "requests"
BYTES: Final = "bytes"
COST: Final = "cost"
CONCURRENT: Final = "concurrent"


def unit_of(spec: RatePolicySpec) -> Unit:
    """Returns the unit of all amounts of a policy: the name of the field that has them."""
    for rate in (spec.total, *spec.limits):
        named: Unit | None = rate.WhichOneof("amount")
        if named is not None:
            return named
    return REQUESTS


def told(unit: Unit) -> str:
    """Returns how messages name the unit of a bucket: what is counted most often has no name."""
    return "" if unit == REQUESTS else unit


def amount_of(rate: Any) -> int:
    """Returns the amount of a Rate, RateLimit, ServiceLimit or MethodLimit, in its policy's unit; 0 if it has none."""
    named = rate.WhichOneof("amount")
    return int(getattr(rate, named)) if named is not None else 0
