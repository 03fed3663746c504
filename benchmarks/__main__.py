"""Runs benchmarks: `python -m benchmarks [NAME] [--agents N] [--rounds N]`, or `make bench NAME=push`."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable

import grpc

from benchmarks import access, api, effect, gather, identity, idle, push, quota, revoke, stack
from benchmarks.process import Broken, say
from benchmarks.result import Case, Unmeasurable
from meshwarden.agents.envoy.supervisor import EnvoyMissing

AGENTS, ROUNDS = 1000, 9
BENCHES: dict[str, tuple[str, Callable[[int, int], AsyncIterator[Case]]]] = {
    "push": ("a change to every agent: CPU, last acknowledgement; memory, reconnecting, a cold start", push.run),
    "effect": ("a policy change until the first call that shows it, on a running mesh", effect.run),
    "stack": (
        "writing to every agent, by who ends TLS: CPU, last acknowledgement, memory",
        stack.run,
    ),
    "revoke": ("a denied identity until it is refused, and until its stream has ended, on a running mesh", revoke.run),
    "identity": ("what a certificate costs, and how long one waits for it, beside OpenBao", identity.run),
    "gather": ("what telemetry costs: on a call, on its way up, in the graph, in memory, on disk", gather.run),
    "quota": ("what a limit across the mesh costs: a decision, dividing, memory", quota.run),
    "access": ("what it costs to ask whether a caller may call, by how many are named", access.run),
    "api": ("a read by REST: beside gRPC, and beside a web framework that does nothing", api.run),
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
    parser.add_argument("name", nargs="?", choices=sorted(BENCHES), metavar="NAME", help="one of those below; else all")
    for name, default, about in (
        ("agents", AGENTS, "simulated agents"),
        ("rounds", ROUNDS, "how often each side has its turn"),
    ):
        variable = f"BENCH_{name.upper()}"
        parser.add_argument(
            f"--{name}",
            type=_positive,
            metavar="N",
            default=os.environ.get(variable, str(default)),
            help=f"{about}; default {default}, or ${variable}",
        )
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return int(text)


async def _run(names: list[str], agents: int, rounds: int) -> bool:
    """Runs benchmarks one after the other; returns whether each gave all its figures."""
    is_whole = True
    for name in names:
        _, bench = BENCHES[name]
        try:
            async for case in bench(agents, rounds):
                try:
                    print(case.line(), flush=True)
                except Unmeasurable as error:
                    say(f"{name}: {error}")
                    is_whole = False
        except (Broken, EnvoyMissing, TimeoutError, grpc.RpcError) as error:
            say(f"{name}: {str(error) or 'something took too long'}")
            is_whole = False
    return is_whole


def main() -> int:
    """Returns the exit code: 0, 1 if a figure is missing, or 130 after Ctrl-C."""
    arguments = _arguments()
    names = [arguments.name] if arguments.name else list(BENCHES)
    try:
        return 0 if asyncio.run(_run(names, arguments.agents, arguments.rounds)) else 1
    except KeyboardInterrupt:
        say("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
