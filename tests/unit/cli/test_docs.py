"""Every command that the documentation names is one that there is, with options that it takes."""

import re
import shlex

import click
import pytest
from tests import pages

from meshwarden.agents.cli import main as agent
from meshwarden.controlplane.cli.main import main

PROGRAMS: dict[str, click.Command] = {"meshwarden": main, "meshwarden-agent": agent}
NAMES = [pages.name(path) for path in pages.PAGES]
SOMETHING = "x"
_BETWEEN = re.compile(r"\s(?:\||&&|;)\s")
_ENDS = re.compile(r"\s(?:>>?|2>&1|&|#)(?:\s.*)?$")


def commands(page: str) -> list[list[str]]:
    """The command lines of ours on a page, as a shell splits them."""
    found = []
    for command in pages.commands(page):
        line = re.sub(r'^make up(?: ARGS="([^"]*)")?.*$', r"meshwarden up \1", command.text)
        for part in _BETWEEN.split(line):
            if re.match(r"(?:\w+=\S* )*meshwarden(?:-agent)? ", part):  # noqa: TID251 - the rest is what is looked at
                words = shlex.split(pages.BLANK.sub(SOMETHING, _ENDS.sub("", part)))
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


@pytest.mark.parametrize("page", NAMES)
def test_every_command_on_a_page_can_be_typed(page: str) -> None:
    wrong = {shlex.join(words): why for words in commands(page) if (why := fault(PROGRAMS[words[0]], words))}
    assert not wrong


def test_it_finds_what_is_wrong() -> None:
    assert sum(len(commands(page)) for page in NAMES) > 200
    for line in ("graph --nonsense", "nonsense", "graph -o nonsense", "graph x", "node nonsense"):
        assert fault(main, ["meshwarden", *line.split()]), line
    assert not fault(main, ["meshwarden", "--context", "x", "graph", "-o", "svg", "--tenant", "acme"])
