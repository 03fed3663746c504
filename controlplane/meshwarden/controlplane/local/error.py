"""How things fail here: one line on what was wrong, one on the fix."""

from collections.abc import Iterator


class LocalError(Exception):
    """It could not be done; `fix` says what to do about it."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class NoContext(LocalError):
    """No mesh is known by that name, or none at all."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, however deep; one that is no group alone."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
