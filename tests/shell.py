"""A terminal in which tests type what the documentation's pages say, and hold what it prints against them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests import pages

DEADLINE_S = 120.0
NOTHING: Mapping[str, str] = {}


class Shell:
    """Types commands of pages in a directory; tests/unit/cli/test_docs.py sees which.

    In what a page has, `words` are replaced: what a run knows better, as names, revisions and files.
    """

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**environment, "PATH": path}
        self.directory = directory
        self._running: list[subprocess.Popen[str]] = []

    def run(self, line: str) -> "subprocess.CompletedProcess[str]":
        """Runs a line; what it prints on either stream is in `stdout`, in the order of a terminal."""
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def types(
        self,
        page: str,
        text: str,
        words: Mapping[str, str] = NOTHING,
        *,
        code: int | None = 0,
        rows: bool = False,
        which: int = 0,
    ) -> str:
        """Runs a command of a page once; it prints what the page says, and is returned.

        Args:
            page: as pages.Command has it.
            text: of the command, as the page has it.
            words: {what stands on the page: what is meant here}.
            code: its exit status; None for any.
            rows: whether each line of the page is to be printed, in whatever order and with others between them.
            which: of several on the page with the same text.
        """
        shown = pages.command(page, text, which)
        done = self.run(pages.filled(shown.text, words))
        wrong = _wrong(shown.said, done.stdout, words, rows=rows)
        assert code in (None, done.returncode), f"{shown} ended with {done.returncode}: {done.stdout}"
        assert not wrong, f"{page}: $ {text}: {wrong}\n-- printed:\n{done.stdout}"
        return done.stdout

    def reads(
        self,
        page: str,
        text: str,
        words: Mapping[str, str] = NOTHING,
        *,
        code: int | None = 0,
        rows: bool = False,
        which: int = 0,
    ) -> str:
        """The same of a command that changes nothing: again and again until it prints what the page says."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self.types(page, text, words, code=code, rows=rows, which=which)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.3)

    def begins(self, page: str, text: str, words: Mapping[str, str] = NOTHING) -> "subprocess.Popen[str]":
        """Starts a command of a page that doesn't end by itself; `end` ends it."""
        line = pages.filled(pages.command(page, text).text, words)
        program = subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(program)
        return program

    def follows(self, page: str, text: str, words: Mapping[str, str] = NOTHING) -> str:
        """The first line of what goes on printing, which is ended then."""
        program = self.begins(page, text, words)
        assert program.stdout is not None
        line = program.stdout.readline()
        program.kill()
        program.communicate()
        assert line, f"{page}: $ {text} printed nothing"
        return line

    def end(self) -> None:
        for program in self._running:
            if program.poll() is None:
                program.kill()
                program.communicate()


def printed(page: str, text: str, output: str, words: Mapping[str, str] = NOTHING) -> None:
    """Holds against a page what a command of it has printed that a test started in another way."""
    wrong = _wrong(pages.command(page, text).said, output, words, rows=True)
    assert not wrong, f"{page}: $ {text}: {wrong}\n-- printed:\n{output}"


def _wrong(said: str, output: str, words: Mapping[str, str], *, rows: bool) -> str:
    """What of a page was not printed so."""
    if not said:
        return ""
    # What a command is at, which a terminal shows until there is more to say.
    output = re.sub(r"^[a-z][a-z0-9 ]* …\n", "", output, flags=re.MULTILINE)
    if not rows:
        fits = re.fullmatch(pages.pattern(pages.filled(said, words)), output.strip())
        return "" if fits else f"the page says\n{said}"
    lines = [line for line in pages.filled(said, words).splitlines() if line.strip() != "…"]
    found = output.splitlines()
    missing = [line for line in lines if not any(re.fullmatch(pages.pattern(line), one.strip()) for one in found)]
    return f"there is no line like {missing}" if missing else ""
