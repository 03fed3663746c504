"""Bounds on metrics that programs send: what is too much of a point is cut, what is no point is refused.

A point that has too many attributes goes as a whole: cut, it would be another series.

Source: OpenTelemetry metrics data model.
"""

from collections.abc import Callable
from typing import Any, Final

from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics

from meshwarden.agents.telemetry.attribute import (
    MAX_NAME,
    MAX_SCOPES,
    Bounded,
    bound_attributes,
    bound_resource,
    bound_scope,
    replace_all,
    shorten,
)

_MAX_POINT_BYTES: Final = 65_536
_MAX_METRICS: Final = 1024  # of a scope
_MAX_ATTRIBUTES: Final = 64
_MAX_BUCKETS: Final = 512
_MAX_EXEMPLARS: Final = 8
_MAX_METRIC_NAME: Final = 255
_MAX_UNIT: Final = 63


def bound_points(message: ResourceMetrics, most: int, is_late: Callable[[], bool]) -> Bounded:
    """Bounds a message in place.

    Args:
        message: the message.
        most: how many points may stay.
        is_late: asked before each metric; once true, the rest goes.
    """
    found = Bounded()
    bound_resource(message)
    found.too_many += shorten(message.scope_metrics, MAX_SCOPES)
    for scope in message.scope_metrics:
        bound_scope(scope)
        found.too_many += shorten(scope.metrics, _MAX_METRICS)
        kept = []
        for metric in scope.metrics:
            before = found.kept
            _bound_metric(metric, most, is_late, found)
            if found.kept > before:
                kept.append(metric)
        replace_all(scope, "metrics", kept)
    return found


def _bound_metric(metric: Metric, most: int, is_late: Callable[[], bool], found: Bounded) -> None:
    kind = metric.WhichOneof("data")
    data: Any = getattr(metric, kind) if kind else None
    if data is None or not 0 < len(metric.name) <= _MAX_METRIC_NAME:
        found.malformed += len(data.data_points) if data is not None else 1
        return
    if is_late():
        found.too_many += len(data.data_points)
        return
    metric.description = metric.description[:MAX_NAME]
    metric.unit = metric.unit[:_MAX_UNIT]
    del metric.metadata[:]
    found.too_many += shorten(data.data_points, most - found.kept)
    kept = []
    for point in data.data_points:
        if not _is_sound(point):
            found.malformed += 1
        elif point.ByteSize() > _MAX_POINT_BYTES or bound_attributes(point.attributes, _MAX_ATTRIBUTES):
            found.too_many += 1
        else:
            _bound_exemplars(point)
            kept.append(point)
    replace_all(data, "data_points", kept)
    found.kept += len(kept)


def _is_sound(point: Any) -> bool:
    fields = point.DESCRIPTOR.fields_by_name
    if "explicit_bounds" in fields:
        buckets, bounds = len(point.bucket_counts), len(point.explicit_bounds)
        return buckets <= _MAX_BUCKETS and (buckets == bounds + 1 or buckets == bounds == 0)
    if "positive" in fields:
        return max(len(point.positive.bucket_counts), len(point.negative.bucket_counts)) <= _MAX_BUCKETS
    return "quantile_values" not in fields or len(point.quantile_values) <= _MAX_BUCKETS


def _bound_exemplars(point: Any) -> None:
    if "exemplars" in point.DESCRIPTOR.fields_by_name:
        shorten(point.exemplars, _MAX_EXEMPLARS)
        for exemplar in point.exemplars:
            bound_attributes(exemplar.filtered_attributes, _MAX_EXEMPLARS)
