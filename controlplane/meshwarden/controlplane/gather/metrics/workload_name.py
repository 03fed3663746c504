"""Names and labels of workloads' own metrics, as Prometheus writes them.

Who sends is said by labels that begin with `mesh_`, which nobody can send. What would pass for a series of the mesh's
own begins with `workload_` instead.

Errors: ValueError, for a name or labels that can't be shown.

Source: OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility", OTLP to Prometheus.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from meshwarden.controlplane.gather.metrics import duration

MAX_LABELS_BYTES: Final = 2048
MAX_NAME: Final = 255
_PLACE: Final = ("mesh.tenant", "mesh.service", "mesh.node", "mesh.region", "mesh.workload", "service.instance.id")
_NOT_OURS: Final = "workload_"
_OURS: Final = re.compile(
    r"(meshwarden|envoy|process|python|scrape|ALERTS)(_|$)|(up|target_info)$|" + "|".join(duration.FAMILIES)
)
_OUT: Final = re.compile(r"[^a-zA-Z0-9]+")
_NOTE: Final = re.compile(r"\{[^}]*\}")
# Source: UCUM, and the words that Prometheus has for it.
_UNITS: Final = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
}
_EACH: Final = {"s": "second", "min": "minute", "h": "hour", "d": "day"}
Labels = tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=4096)
def name_of(name: str, unit: str, kind: str) -> str:
    """What a metric is called.

    Args:
        name: as it was sent.
        unit: in UCUM.
        kind: "counter", "gauge", "histogram" or "summary".

    Raises:
        ValueError: it is too long, or has nothing that may be in a name.
    """
    words = _OUT.sub("_", name).strip("_")
    if not words or len(name) > MAX_NAME:
        raise ValueError("no name, or one that is too long")
    unit = "ratio" if unit == "1" and kind == "gauge" else _unit(unit)
    words = words.removesuffix("_total") if kind == "counter" else words
    if unit and not words.endswith(unit):
        words += f"_{unit}"
    return f"{_NOT_OURS}{words}" if words[0].isdecimal() or _OURS.match(words) else words


def place_of(resource: Iterable[KeyValue], scope: Any) -> dict[str, str]:
    """The labels of who sends: {name: value}."""
    said = {pair.key: pair.value.string_value for pair in resource if pair.key in _PLACE}
    found = {key.replace(".", "_"): value for key, value in said.items() if value}
    if scope.name:
        found["otel_scope_name"] = scope.name
    return found


def labels_of(point: Iterable[KeyValue], place: Mapping[str, str]) -> Labels:
    """Who sends, and what the point says, in order.

    Raises:
        ValueError: they are too long.
    """
    found = dict(place)
    for pair in sorted(point, key=_key):
        name, value = _label(pair.key), _text(pair.value)
        found[name] = f"{found[name]};{value}" if name in found else value
    labels = tuple(sorted(pair for pair in found.items() if pair[1]))
    if sum(len(name) + len(value.encode()) for name, value in labels) > MAX_LABELS_BYTES:
        raise ValueError(f"labels of more than {MAX_LABELS_BYTES} bytes")
    return labels


def _key(pair: KeyValue) -> str:
    return str(pair.key)


@functools.lru_cache(maxsize=4096)
def _label(key: str) -> str:
    name = _OUT.sub("_", key).strip("_") or "_"
    if name[0].isdecimal():
        name = f"key_{name}"
    # As Prometheus does with labels of a target that would stand for its own.
    is_taken = name.startswith(("mesh_", "otel_scope_")) or name in ("le", "quantile", "service_instance_id")
    return f"exported_{name}" if is_taken else name


def _unit(unit: str) -> str:
    of, _, each = _NOTE.sub("", unit).partition("/")
    words = [_UNITS.get(of, "" if of == "1" else _OUT.sub("_", of).strip("_"))]
    if each:
        words += ["per", _EACH.get(each, _OUT.sub("_", each).strip("_"))]
    return "_".join(word for word in words if word)


def _text(value: AnyValue) -> str:
    if value.HasField("string_value"):
        return value.string_value
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else ""
