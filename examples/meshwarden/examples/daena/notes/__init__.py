"""What the agents know, a sentence a line, and what the council is asked."""

from importlib.resources import files
from typing import Final

AGENTS: Final = ("analyst", "sceptic", "scholar")


def lines(name: str) -> tuple[str, ...]:
    """Returns the lines of `<name>.txt`."""
    return tuple(files(__name__).joinpath(f"{name}.txt").read_text("utf-8").splitlines())
