"""What a route policy says of the choice of an endpoint must hold by itself, and the schema can't say."""

from collections.abc import Iterator
from typing import Any

from meshwarden.v1.resources_pb2 import RoutePolicySpec


def choice_faults(spec: RoutePolicySpec) -> Iterator[tuple[str, str]]:
    """The fields that make no sense, and why."""
    balancing = spec.load_balancing
    if spec.HasField("affinity") and balancing.HasField("ring_hash"):
        yield "spec.affinity", "loadBalancing.ringHash chooses the endpoint of every call already: give one of the two"
    if balancing.HasField("ring_hash") and balancing.ring_hash.header.endswith("-bin"):
        yield (
            "spec.loadBalancing.ringHash.header",
            "is a binary header, which gRPC shows to nobody: hash on another one",
        )
    if spec.HasField("outlier_detection"):
        said = spec.outlier_detection
        base_s, longest_s = _seconds(said, "base_ejection_time", 30.0), _seconds(said, "max_ejection_time", 300.0)
        if base_s > longest_s:
            yield "spec.outlierDetection.maxEjectionTime", f"is below baseEjectionTime, {base_s:g}s"


def _seconds(said: Any, field: str, default: float) -> float:
    return float(getattr(said, field).ToTimedelta().total_seconds()) if said.HasField(field) else default
