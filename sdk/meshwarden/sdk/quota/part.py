"""Which part of a tenant's limit a call counts against: its method's, or that of a class of methods."""

from collections.abc import Iterable, Sequence

from meshwarden.v1.resources_pb2 import MethodLimit


def key_of(part: MethodLimit) -> str:
    """The name of a part's bucket: the method, "/package.Service/Method", or the class, "writes"."""
    return part.call_class or part.method


def methods_of(part: MethodLimit) -> Sequence[str]:
    """The methods that a part is for."""
    return part.methods if part.call_class else (part.method,)


def keys_of(parts: Iterable[MethodLimit]) -> dict[str, str]:
    """The buckets of all methods that have one: {method: key}."""
    return {method: key_of(part) for part in parts for method in methods_of(part)}


def find_part(parts: Iterable[MethodLimit], method: str) -> MethodLimit | None:
    """The part that is for a method."""
    return next((part for part in parts if method in methods_of(part)), None)
