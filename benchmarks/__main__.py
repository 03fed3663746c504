"""Runs benchmarks: `python -m benchmarks [NAME] [--agents N] [--rounds N]`, or `make bench NAME=push`."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable

from benchmarks import effect, idle, push
from benchmarks.process import say
from benchmarks.result import Case

AGENTS, ROUNDS = 1000, 9
BENCHES: dict[str, tuple[str, Callable[[int, int], AsyncIterator[Case]]]] = {
    "push": ("a policy change to every agent: CPU, last acknowledgement, memory", push.run),
    "effect": ("a policy change until the first call that shows it, on a running mesh", effect.run),
    "idle": ("the memory of an agent that hosts nothing", idle.run),
}


def _arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:8} {about}" for name, (about, _) in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compares Meshwarden with a peer or a limit measured in the same run; one JSON line a case.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=sorted(BENCHES), metavar="NAME", help="one of those below; all")
    parser.add_argument("--agents", type=_positive, default=_positive(os.environ.get("BENCH_AGENTS", str(AGENTS))))
    parser.add_argument("--rounds", type=_positive, default=_positive(os.environ.get("BENCH_ROUNDS", str(ROUNDS))))
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


async def _run(names: list[str], agents: int, rounds: int) -> None:
    for name in names:
        _, bench = BENCHES[name]
        async for case in bench(agents, rounds):
            print(case.line(), flush=True)


def main() -> int:
    """Returns the exit code: 0, or 130 after Ctrl-C."""
    arguments = _arguments()
    try:
        asyncio.run(_run([arguments.name] if arguments.name else list(BENCHES), arguments.agents, arguments.rounds))
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
