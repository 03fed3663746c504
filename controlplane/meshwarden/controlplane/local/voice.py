"""How `up` speaks: progress and trouble on stderr, what runs on stdout; a live table on a terminal, else lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape


class Voice:
    """Says what happens.

    Attributes:
        is_live: whether there is a terminal for a table that changes in place.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, quiet: bool = False) -> None:
        """Speaks to these; `quiet` leaves stdout to programs."""
        self._err = Console(file=err or sys.stderr, highlight=False, soft_wrap=True)
        self._out = self._err if quiet else Console(file=out or sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal for a table that changes in place."""
        return self._out.is_terminal

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Shows that something is under way, and how long it took; yields what adds a detail meanwhile."""
        began = monotonic()
        detail = ""

        def note(more: str) -> None:
            nonlocal detail
            if more == detail:
                return
            detail = more
            if self._err.is_terminal:
                status.update(f"{escape(text)} [dim]{escape(detail)}[/]")
            else:
                self._err.print(f"    {more}", markup=False)

        if not self._err.is_terminal:
            self._err.print(f"{text} …", markup=False)
            yield note
            self._err.print(f"{text}: done in {monotonic() - began:.1f} s", markup=False)
            return
        with self._err.status(escape(text)) as status:
            yield note
        self._err.print(f"[green]✓[/] {escape(text)} [dim]{monotonic() - began:.1f} s[/]")

    def say(self, text: str) -> None:
        """Says something on stdout."""
        self._out.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Says that something went wrong; it stands above the table."""
        console = self._live.console if self._live is not None and self._out.is_terminal else self._err
        console.print(plain(text), markup=False, style="yellow")

    @contextmanager
    def table(self) -> Iterator[Callable[[RenderableType], None]]:
        """Shows a table in place for as long as the body runs; yields what replaces it."""
        with Live(console=self._out, auto_refresh=False, vertical_overflow="ellipsis") as live:
            self._live = live
            try:
                yield lambda content: live.update(content, refresh=True)
            finally:
                self._live = None


def plain(text: str) -> str:
    """Text without control characters but newlines: what a program printed must not drive the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)
