"""How things fail here: one line on what was wrong, one on the fix."""


class LocalError(Exception):
    """It could not be done; `fix` says what to do about it."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class NoContext(LocalError):
    """No mesh is known by that name, or none at all."""
