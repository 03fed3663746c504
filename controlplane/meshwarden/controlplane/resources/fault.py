"""What is wrong with a resource."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class FieldFault:
    """What is wrong with one field: its path in JSON names, "spec.allow[0].from[1].service", and why."""

    field: str
    message: str
