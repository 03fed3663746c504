"""The documentation's pages as tests read them: which commands are on them, and what they are to print.

A command is what stands in a block after "$ ", and what stands in backquotes in prose and begins with one of PROGRAMS.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
PROGRAMS = (
    "meshwarden",
    "meshwarden-agent",
    "make",
    "curl",
    "bao",
    "buf",
    "openssl",
    "certutil",
    "python",
    "pip",
    "promtool",
)
_PROGRAM = rf"(?:\w+=\S+ )*(?:{'|'.join(PROGRAMS)}) "
# Where one is to write what is meant.
BLANK = re.compile(r"<[^<>]*>|\{[^{}]*\}|\$\([^()]*\)|…|\.\.\.")
_UNITS = ("ns", "µs", "ms", "s", "min", "h")
_VARIES = re.compile(
    r"(?P<any>…)|(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})|(?P<period>(?:\d+[dhms])+\b)|(?P<hash>\b(?=[a-f]*\d)[0-9a-f]{7,}\b)|(?P<number>\d+(?:[.,:]\d+)*)"
)
_ANY_OF = {
    "any": r"[^\n]*?",
    "uuid": "[0-9a-f-]{36}",
    "period": r"(?:[\d.]+[dhms])+",
    "hash": "[0-9a-f]{7,}",
    "number": r"\d[\d.,:]*",
}


@dataclass(frozen=True)
class Command:
    """One that somebody is to type.

    Attributes:
        page: where it stands, from the root of the checkout.
        text: itself, on one line.
        said: what the page shows that it prints; nothing in prose.
        in_prose: whether it may be a name without all that it takes.
    """

    page: str
    text: str
    said: str = ""
    in_prose: bool = False


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def commands(page: str) -> tuple[Command, ...]:
    """The commands on a page."""
    text = (ROOT / page).read_text()
    found = [Command(page, *_parted(part)) for block in _blocks(text) for part in _typed(block)]
    prose = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE)
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return (*found, *(Command(page, span, in_prose=True) for span in spans if _begins(span)))


def command(page: str, text: str, which: int = 0) -> Command:
    """The command of this text on a page: of several the one of this number among those that have output, if any has.

    Raises:
        LookupError: the page has none.
    """
    found = [one for one in commands(page) if one.text == text]
    if not found:
        raise LookupError(f"{page} has no command {text!r} any more")
    return ([one for one in found if one.said] or found)[which]


def filled(text: str, words: Mapping[str, str]) -> str:
    """A text with what stands in it replaced by what is meant."""
    for word, meant in words.items():
        text = text.replace(word, meant)
    return text


def bare(page: str) -> list[str]:
    """Lines of a page's blocks that look like commands and have no "$ " before them."""
    blocks = _blocks((ROOT / page).read_text(), but="text")
    return [line for block in blocks for line in block.splitlines() if _begins(line)]


def pattern(said: str) -> str:
    """What matches all that a command may print where a page shows `said`.

    Numbers, hashes, periods and paths of homes differ from run to run, and white space by where it is printed to; "…"
    stands for anything, on a line of its own for any lines.
    """
    made, before = "", ""
    for token in said.split():
        made += "" if not made else r"\s*" if "…" in (token, before) else r"\s+"
        made += _of_token(token)
        before = token
    return made


def _of_token(token: str) -> str:
    if token == "…":
        return "(?s:.*?)"
    if token in _UNITS:
        return f"(?:{'|'.join(_UNITS)})"
    if token.startswith(("~/", "/home/")):
        return r"\S+"
    made, end = "", 0
    for match in _VARIES.finditer(token):
        made += re.escape(token[end : match.start()]) + _ANY_OF[match.lastgroup or ""]
        end = match.end()
    return made + re.escape(token[end:])


def _begins(text: str) -> bool:
    return re.compile(_PROGRAM).match(text) is not None


def _blocks(text: str, but: str = "") -> Iterator[str]:
    """Blocks of code, those in fences but of one language and those that are indented."""
    for indent, language, block in re.findall(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        if not but or language != but:
            yield re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
    yield from _indented(text)


def _indented(text: str) -> list[str]:
    without = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"(?:^ {4}.*\n)+", without, re.MULTILINE)
    return [re.sub("^ {4}", "", block, flags=re.MULTILINE) for block in blocks]


def _typed(block: str) -> list[str]:
    return re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]


def _parted(part: str) -> tuple[str, str]:
    """Parts a command, which may go over several lines, from what it prints."""
    lines = part.partition("\n\n")[0].rstrip().split("\n")
    text = lines.pop(0)
    while lines and text.endswith(("\\", "|")):
        text = f"{text.removesuffix(chr(92)).rstrip()} {lines.pop(0).removeprefix('>').strip()}"
    return re.sub(r"\s+# .*$", "", text).strip(), "\n".join(lines)
