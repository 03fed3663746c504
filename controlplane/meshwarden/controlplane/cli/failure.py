"""How a command fails: one line on what was wrong, one on the fix, and an exit code that means something.

click.ClickException
└── Failure      1  failed, or refused by the mesh
├── Unreachable  3  the control plane is not there
├── NotFound     4  what was named is not there
├── Differs      5  `diff` found differences
├── Unwanted     6  `diff --fail-on` found what is not wanted
└── TooLate      7  what was waited for did not come in time
click.UsageError     2  the command was written wrong
"""

from typing import Any, ClassVar

import click

EXIT_CODES = """\b
Exit codes:
  0  done
  1  failed, or refused by the mesh
  2  written wrong
  3  the control plane can't be reached
  4  what was named is not there
  5  diff found differences
  6  diff --fail-on found what is not wanted, way-back what is in the way
  7  what was waited for did not come in time"""


class Failure(click.ClickException):
    """The command failed; `fix` says what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix

    def show(self, file: Any = None) -> None:
        """Prints what was wrong, and the fix, on stderr."""
        for line in self.message.splitlines() or [""]:
            click.echo(f"error: {line}", err=True)
        if self.fix:
            click.echo(f"fix: {self.fix}", err=True)


class Unreachable(Failure):
    """The control plane is not there."""

    exit_code: ClassVar[int] = 3


class NotFound(Failure):
    """What was named is not there."""

    exit_code: ClassVar[int] = 4


class Differs(Failure):
    """`diff` found differences; they are printed already."""

    exit_code: ClassVar[int] = 5

    def show(self, file: Any = None) -> None:
        """Says nothing more."""


class Unwanted(Failure):
    """A change would do what is not wanted."""

    exit_code: ClassVar[int] = 6


class TooLate(Failure):
    """What was waited for did not come in time."""

    exit_code: ClassVar[int] = 7


def from_rpc(error: Any) -> Failure:
    """Turns a failed call into what a person can use."""
    import grpc  # slow to import: only where a call has failed

    code, details = error.code(), error.details() or "no reason given"
    if code == grpc.StatusCode.NOT_FOUND:
        return NotFound(details)
    told = {name for name, _ in error.trailing_metadata() or ()}
    # Details are the control plane's own: it does answer, and whom it needs does not.
    if "retry-after" in told or (code == grpc.StatusCode.UNAVAILABLE and "grpc-status-details-bin" in told):
        return Failure(details)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable(
            f"the control plane does not answer: {details}",
            "see `meshwarden doctor`; is `meshwarden up` running, and is this the right `meshwarden context`?",
        )
    if code == grpc.StatusCode.ABORTED:
        return Failure(details, "somebody changed it meanwhile: `meshwarden get` it again and apply anew")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return Failure("the control plane does not know this command: it is older", "update and restart it")
    if code == grpc.StatusCode.PERMISSION_DENIED:
        return Failure(details, "see `meshwarden context show` for who you are to the mesh")
    return Failure(f"{details} ({code.name})")
