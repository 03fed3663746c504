"""Output: tables for people, tab-separated text for pipes, JSON and YAML for programs."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from meshwarden.v1.admin_service_pb2 import RegionState

if TYPE_CHECKING:
    from rich.console import Console

_WORD = 32
"""So long a word isn't broken: a trace id."""
_WORDS = re.compile(r"(?s)^.{1,8}$|\s*\S+")
"""What is so long at most isn't broken even between words: "37.1 ms"."""

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="What to print.",
)


def as_dict(message: Message) -> dict[str, Any]:
    """The JSON mapping of a message, as manifests write it."""
    result: dict[str, Any] = MessageToDict(message)
    return result


def plain(value: object) -> str:
    """Text without control characters: what another wrote must not drive the reader's terminal."""
    return "".join(char if char.isprintable() else "�" for char in str(value))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Prints rows: a table on a terminal, else a header and rows separated by tabs."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(plain(value) for value in row))
        return
    from rich.console import Console  # slow to import, and of use on a terminal alone

    draw(columns, rows, title, Console())


def draw(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str, console: "Console") -> None:
    """Draws a table. What is too long for the console goes on in the next line; nothing is left out.

    A name or an id can be copied whole: such a column, up to 32 characters wide, isn't broken though the table be wider
    than the console.
    """
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    cells = [[plain(value) for value in row] for row in rows]
    least = [
        min(_WORD, max(len(word) for text in of_one for word in _WORDS.findall(text) or [""]))
        for of_one in zip(columns, *cells, strict=True)
    ]
    heads = [Column(name, min_width=width, overflow="fold") for name, width in zip(columns, least, strict=True)]
    shown = Table(
        *heads, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title or None, title_justify="left"
    )
    for texts in cells:
        shown.add_row(*map(Text, texts))
    room = sum(least) + 2 * len(columns) + 1
    console.print(shown, width=max(room, console.width), crop=False)


def data(value: Any, output: str) -> None:
    """Prints a value as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        import yaml  # slow to import

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Shows on stderr that something is under way: a spinner on a terminal, a line otherwise."""
    if not sys.stderr.isatty():
        click.echo(f"{text} …", err=True)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def moment(when: Timestamp) -> str:
    """A moment to the minute, in UTC: "2026-11-26T23:00Z"."""
    return when.ToDatetime(UTC).strftime("%Y-%m-%dT%H:%MZ")


def life(seconds: float) -> str:
    """A span of time for people: "42m", "-3s" where it is over."""
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= size * 2:
            return f"{sign}{int(left // size)}{unit}"
    return f"{sign}{int(left)}s"


def age(state: RegionState) -> str:
    """How old what is known of a region is: "now" of our own, "never" where nothing is."""
    if state.own:
        return "now"
    return life(state.age.ToTimedelta().total_seconds()) if state.HasField("age") else "never"


def duration(seconds: float) -> str:
    """A duration for people: "850 µs", "12 ms", "1.4 s"; "-" for none."""
    if seconds <= 0:
        return "-"
    if seconds >= 1000:
        return f"{seconds:.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
