"""What a check says."""

from dataclasses import dataclass


class CheckFailed(Exception):
    """What was promised does not hold; the message says what was seen instead."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one named check; `detail` says what was seen."""

    name: str
    ok: bool
    detail: str


def require(holds: bool, otherwise: str) -> None:
    """Fails the check unless `holds`.

    Raises:
        CheckFailed: with the text `otherwise`.
    """
    if not holds:
        raise CheckFailed(otherwise)
