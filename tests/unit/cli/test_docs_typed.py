"""Every command of the documentation is run by a test: typed as its page has it, or as tests/elsewhere.py says."""

import functools
import subprocess
from importlib.util import find_spec

import pytest
from tests import pages
from tests.elsewhere import AT_ANOTHER_PAGE, BY_HAND, ELSEWHERE
from tests.typed import says, typed

REFERENCE = "docs/cli.md"
COMMANDS = [one for path in pages.PAGES for one in pages.commands(pages.name(path))]
TEXTS = {one.text for one in COMMANDS}
LISTED = {*ELSEWHERE, *BY_HAND}


@functools.cache
def known() -> tuple[set[tuple[str, str, int]], set[str]]:
    """What is typed, and all commands that are run anywhere."""
    found = typed()
    return found, {text for _, text, _ in found} | LISTED


def is_part(mention: str, whole: str) -> bool:
    """Whether a command that prose names is one of these words: its program, and its words in their order."""
    words, of = pages.BLANK.sub(" ", mention).split(), whole.split()
    rest = iter(of)
    return words[0] == of[0] and all(word in rest for word in words)


def is_run(command: pages.Command, which: int) -> bool:
    exactly, texts = known()
    if (command.page, command.text, which) in exactly or (command.page, command.text) in AT_ANOTHER_PAGE:
        return True
    if command.said:
        return command.text in LISTED
    return command.text in texts or (command.in_prose and any(is_part(command.text, text) for text in texts))


@pytest.mark.parametrize("page", [pages.name(path) for path in pages.PAGES])
def test_every_command_is_run_by_a_test(page: str) -> None:
    missing = []
    numbers: dict[str, int] = {}
    for command in pages.commands(page):
        which = numbers.get(command.text, 0) if command.said else 0
        if command.said:
            numbers[command.text] = which + 1
        if not is_run(command, which):
            missing.append(command.text)
    assert not missing, (
        f"{missing}: type it in an end-to-end test (tests/shell.py), or say in tests/elsewhere.py what runs it"
    )
    assert not pages.bare(page), 'a command that is to be typed begins with "$ "'


def test_what_is_typed_is_on_its_page() -> None:
    for page, text, which in typed():
        assert pages.command(page, text, which)


def test_what_is_run_elsewhere_is_there() -> None:
    for text in LISTED:
        assert text in TEXTS, f"no page has {text!r} any more"
    for text, file in ELSEWHERE.items():
        path, _, test = file.partition("::")
        assert not test or f"def {test}(" in (pages.ROOT / path).read_text(), file
        assert says(pages.ROOT / path, text), f"{path} has no {text!r}"
    for (page, text), (file, words) in AT_ANOTHER_PAGE.items():
        assert pages.command(page, text).said
        assert words in (pages.ROOT / file).read_text(), f"{file} has no {words!r}"


@pytest.mark.parametrize("text", sorted({text for text in TEXTS if "make " in text.partition("ARGS=")[0]}))
def test_every_target_of_make_is_one(text: str) -> None:
    done = subprocess.run(
        ["bash", "-c", text.replace("make", "make --dry-run --always-make", 1)],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", sorted({text for text in TEXTS if text.startswith("python -m benchmarks")}))
def test_every_benchmark_is_one(text: str) -> None:
    assert find_spec(f"benchmarks.{text.split()[3]}")


def test_it_finds_what_nobody_runs() -> None:
    page = "docs/policy.md"
    assert not is_run(pages.Command(page, "meshwarden nonsense"), 0)
    assert not is_run(pages.Command(page, "meshwarden nonsense", in_prose=True), 0)
    assert not is_run(pages.Command(page, "meshwarden status", said="something"), 0)
    assert is_part("meshwarden diff --replay 1h", "meshwarden diff -f change.yaml --replay 1h")
    assert not is_part("meshwarden diff --replay 1h", "meshwarden diff --replay 2h")
