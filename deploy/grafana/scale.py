"""Values as people read them, and the steps of an axis. Units are those of `Panel`."""

import math
from collections.abc import Sequence
from typing import Final

_TIMES: Final = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES: Final = ((float(2**30), "GiB"), (float(2**20), "MiB"), (1024.0, "KiB"), (1.0, "B"))
_COUNTS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k"))
_LEAST: Final = 1e-12
_EACH: Final = {"reqps": " req/s", "ops": " /s", "currencyUSD": " $"}
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_BYTE_STEPS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


def text(value: float, unit: str) -> str:
    """A value with its unit, three digits or so."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if unit == "percentunit":
        return f"{_short(value * 100)}%"
    if unit in ("s", "bytes") and value:
        sizes = _TIMES if unit == "s" else _BYTES
        size, name = next(((size, name) for size, name in sizes if abs(value) >= size * 0.9995), sizes[-1])
        return f"{_short(value / size)} {name}"
    if not value:
        return "0"
    size, name = next(((size, name) for size, name in _COUNTS if abs(value) >= size), (1.0, ""))
    # A count of ten thousand is "10k", and one of four digits stands as it is.
    size = 1e3 if name == "k" else size
    return f"{_short(value / size)}{name}{_EACH.get(unit, '')}"


def axis(values: Sequence[float], unit: str, steps: int = 4) -> list[float]:
    """Even steps, about so many, that include all values: from 0 if that is not far, or if values hardly differ."""
    low, high = min(values), max(values)
    if low >= 0 and (low <= 0.7 * high or high - low < 0.02 * high or low == high):
        low = 0.0
    if high - low < _LEAST:
        high = low + (abs(low) if abs(low) > _LEAST else 1.0)
    step = _step((high - low) / steps, unit)
    if unit == "short" and all(value == int(value) for value in values):
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _step(least: float, unit: str) -> float:
    if unit == "bytes" and least >= 1:
        scale = 1024.0 ** math.floor(math.log(least, 1024))
        return scale * next(step for step in _BYTE_STEPS if step * scale >= least * 0.999)
    if unit == "s" and least >= 1:
        for size in (86_400.0, 3600.0, 60.0):
            if least > size / 4:
                return _ceiled(least / size, (0.25, 0.5, *_STEPS)) * size
    scale = 10.0 ** math.floor(math.log10(least))
    return scale * _ceiled(least / scale, _STEPS)


def _ceiled(least: float, steps: Sequence[float]) -> float:
    return next((step for step in steps if step >= least * 0.999), math.ceil(least))


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    found = f"{value:,.{digits}f}"
    found = found.rstrip("0").rstrip(".") if "." in found else found
    return "0" if found == "-0" else found
