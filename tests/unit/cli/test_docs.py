"""Every command that the documentation names is one that there is, with options that it takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from meshwarden.agents.cli import main as agent
from meshwarden.controlplane.cli.main import main

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
PROGRAMS: dict[str, click.Command] = {"meshwarden": main, "meshwarden-agent": agent}
SOMETHING = "x"
# Where one is to write what is meant.
_BLANK = re.compile(r"<[^<>]*>|\{[^{}]*\}|\$\([^()]*\)|…|\.\.\.")
_BETWEEN = re.compile(r"\s(?:\||&&|;)\s")
_ENDS = re.compile(r"\s(?:>>?|2>&1|&|#)(?:\s.*)?$")


def lines(text: str) -> Iterator[str]:
    """What is to be typed: in blocks after "$ ", and whatever stands in backquotes."""
    for block in re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        joined = re.sub(r"(?:\\| \|)\n(?:>\s)?\s*", lambda end: end[0].split("\n")[0].strip("\\") + " ", block)
        yield from re.findall(r"^\s*\$ (.*)$", joined, re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`((?:meshwarden|meshwarden-agent) [^`\n]+)`", prose)


def commands(path: Path) -> list[list[str]]:
    """The command lines of ours on a page, as a shell splits them."""
    found = []
    for line in lines(path.read_text()):
        line = re.sub(r'^make up(?: ARGS="([^"]*)")?.*$', r"meshwarden up \1", line)
        for part in _BETWEEN.split(line):
            if re.match(r"(?:\w+=\S* )*meshwarden(?:-agent)? ", part):  # noqa: TID251 - the rest is what is looked at
                words = shlex.split(_BLANK.sub(SOMETHING, _ENDS.sub("", part)))
                found.append([word for word in words if words.index(word) or "=" not in word])
    return found


def fault(command: click.Command, words: list[str], parent: click.Context | None = None) -> str:
    """Why a command line can't be; empty if it can."""
    # Commands remember what asks for help, and others ask them after us.
    context = click.Context(command, parent=parent, info_name=words[0], **command.context_settings)
    if {"--help", "-h"} & set(words[1:2]):
        return ""
    try:
        options, rest, _ = command.make_parser(context).parse_args(words[1:])
    except click.NoSuchOption as error:
        return error.message
    except click.BadOptionUsage as error:  # prose names an option without what it takes
        return error.message if words[-1] == SOMETHING else fault(command, [*words, SOMETHING], parent)
    except click.UsageError as error:
        return error.message
    for one in command.params:
        value = options.get(one.name or "")
        for each in value if isinstance(value, list | tuple) else [value]:
            # A word in capitals stands for whatever one writes there.
            is_said = isinstance(each, str) and not each.isupper()
            if isinstance(one.type, click.Choice) and is_said and each not in one.type.choices:
                return f"{each!r} is none of {', '.join(map(str, one.type.choices))}"
    if not isinstance(command, click.Group):
        return f"too much: {rest}" if rest and not context.allow_extra_args else ""
    if not rest or rest[0] == SOMETHING:
        return ""
    below = command.get_command(context, rest[0])
    if below is None and (usual := command.get_command(context, "list")) is not None:
        below, rest = usual, ["list", *rest]
    return fault(below, rest, context) if below is not None else f"there is no {rest[0]!r}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_on_a_page_can_be_typed(path: Path) -> None:
    wrong = {shlex.join(words): why for words in commands(path) if (why := fault(PROGRAMS[words[0]], words))}
    assert not wrong


def test_it_finds_what_is_wrong() -> None:
    assert sum(len(commands(path)) for path in PAGES) > 200
    for line in ("graph --nonsense", "nonsense", "graph -o nonsense", "graph x", "node nonsense"):
        assert fault(main, ["meshwarden", *line.split()]), line
    assert not fault(main, ["meshwarden", "--context", "x", "graph", "-o", "svg", "--tenant", "acme"])
