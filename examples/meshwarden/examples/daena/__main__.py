"""Runs one of daena's programs, under `meshwarden-agent exec`."""

import argparse
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.examples.daena import convene, daena_pb2_grpc, notes
from meshwarden.examples.daena.agent.listener import Listener
from meshwarden.examples.daena.agent.mind import Mind
from meshwarden.examples.daena.agent.service import Agent
from meshwarden.examples.daena.bus.broker import Broker, Limits
from meshwarden.examples.daena.bus.service import Bus
from meshwarden.examples.daena.council.client import TOPIC, BusHerald, MemoryClient
from meshwarden.examples.daena.council.member import Member
from meshwarden.examples.daena.council.service import MAX_ROUNDS, CouncilService
from meshwarden.examples.daena.council.session import Council
from meshwarden.examples.daena.memory.service import Memory, move_counter
from meshwarden.examples.daena.memory.store import Limits as MemoryLimits
from meshwarden.examples.daena.memory.store import Store
from meshwarden.examples.daena.metric import Meter
from meshwarden.examples.daena.model.client import ModelClient
from meshwarden.examples.daena.model.service import Model
from meshwarden.examples.daena.serve import begin, serve
from meshwarden.sdk.stop import Stop

AGENTS = {"analyst": "xds:///analyst.acme", "sceptic": "xds:///sceptic.globex", "scholar": "xds:///scholar.daena"}


def run_bus(arguments: argparse.Namespace) -> None:
    limits = Limits(queue=arguments.queue)
    broker = Broker(arguments.topic or [TOPIC], limits, time.monotonic)
    servicer = Bus(broker, Meter())
    serve(
        "bus",
        lambda server: daena_pb2_grpc.add_BusServicer_to_server(servicer, server),
        # A stream holds a thread; the other calls need some of their own.
        max_workers=limits.streams + 8,
        on_stop=broker.close,
    )


def run_model(_: argparse.Namespace) -> None:
    servicer = Model(Meter())
    serve("model", lambda server: daena_pb2_grpc.add_ModelServicer_to_server(servicer, server))


def run_memory(arguments: argparse.Namespace) -> None:
    limits = MemoryLimits(
        hot_bytes=arguments.hot_kib << 10,
        hot_s=arguments.hot_s,
        warm_bytes=arguments.warm_kib << 10,
        warm_s=arguments.warm_s,
        max_bytes=arguments.max_mib << 20,
    )
    meter = Meter()
    store = Store(arguments.directory, limits, lambda: utc_now().timestamp(), move_counter(meter))
    servicer, ended = Memory(store, meter), threading.Event()
    sweeping = threading.Thread(target=servicer.sweep_until, args=(ended,), name="nbmf-sweep")
    sweeping.start()
    try:
        serve("memory", lambda server: daena_pb2_grpc.add_MemoryServicer_to_server(servicer, server))
    finally:
        ended.set()
        sweeping.join()
        store.close()


def run_agent(arguments: argparse.Namespace) -> None:
    meter, mind = Meter(), Mind(arguments.name, notes.lines(arguments.name))
    with ExitStack() as stack:
        model = daena_pb2_grpc.ModelStub(_channel(stack, "xds:///model.daena"))
        bus = daena_pb2_grpc.BusStub(_channel(stack, "xds:///bus.daena"))
        listener = Listener(bus, mind.name, meter, random.SystemRandom())
        listening = threading.Thread(target=listener.run, name="listener")
        servicer = Agent(mind, ModelClient(model, mind.name, meter), meter)
        listening.start()
        try:
            serve(
                mind.name,
                lambda server: daena_pb2_grpc.add_AgentServicer_to_server(servicer, server),
                on_stop=listener.close,  # it ends while the last calls are answered, not after them
            )
        finally:
            listener.close()
            listening.join()


def run_council(_: argparse.Namespace) -> None:
    with ExitStack() as stack:
        # First in, last out: its threads end when the channels that they call on are closed.
        executor = stack.enter_context(ThreadPoolExecutor(MAX_ROUNDS * len(AGENTS), thread_name_prefix="ask"))
        members = [Member(name, daena_pb2_grpc.AgentStub(_channel(stack, target))) for name, target in AGENTS.items()]
        memory = MemoryClient(daena_pb2_grpc.MemoryStub(_channel(stack, "xds:///memory.daena")))
        herald = BusHerald(daena_pb2_grpc.BusStub(_channel(stack, "xds:///bus.daena")))
        council = Council(members, memory, herald, executor)
        servicer = CouncilService(council, Meter(), lambda: uuid.uuid4().hex)
        serve("council", lambda server: daena_pb2_grpc.add_CouncilServicer_to_server(servicer, server))


def run_convene(arguments: argparse.Namespace) -> None:
    if arguments.stats:
        convene.stats()
    elif arguments.read:
        sys.exit(0 if convene.read(arguments.read) else 1)
    elif arguments.rounds:
        sys.exit(0 if convene.rounds(arguments.rounds) else 1)
    else:
        convene.steadily(arguments.every, Stop())


def _channel(stack: ExitStack, target: str) -> grpc.Channel:
    return stack.enter_context(sdk.channel(target))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="daena", description=__doc__)
    programs = parser.add_subparsers(required=True, metavar="PROGRAM")

    def program(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        made = programs.add_parser(
            name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run)
        return made

    bus = program("bus", run_bus, "topics and subscriptions")
    bus.add_argument("--topic", action="append", help=f"a topic; may be given again (default: {TOPIC})")
    bus.add_argument("--queue", type=_number(1, 1 << 16), default=256, help="messages that a subscription holds")
    program("model", run_model, "a local text model that stands for a provider")
    memory = program("memory", run_memory, "NBMF: records in a hot, a warm and a cold tier")
    memory.add_argument("--directory", type=Path, required=True, help="where it keeps its files")
    memory.add_argument("--hot-kib", type=_number(1, 1 << 20), default=256, help="size of the hot tier")
    memory.add_argument("--hot-s", type=_number(1, 1 << 31), default=30, help="idle seconds until a record is warm")
    memory.add_argument("--warm-kib", type=_number(1, 1 << 22), default=4096, help="size of the warm tier")
    memory.add_argument("--warm-s", type=_number(1, 1 << 31), default=300, help="idle seconds until a record is cold")
    memory.add_argument("--max-mib", type=_number(1, 1 << 20), default=256, help="size of all files")
    agent = program("agent", run_agent, "one member of the council")
    agent.add_argument("--name", choices=notes.AGENTS, required=True, help="which")
    program("council", run_council, "rounds: scout, debate, commit")
    asking = program("convene", run_convene, "asks the council, steadily")
    asking.add_argument("--every", type=_number(1, 3600), default=5, metavar="SECONDS", help="between two rounds")
    asking.add_argument("--rounds", type=_number(1, 1000), help="hold so many, print them as JSON, and end")
    asking.add_argument("--read", nargs="+", metavar="ID", help="print records of the memory as JSON, and end")
    asking.add_argument("--stats", action="store_true", help="print what all services have measured, and end")
    return parser.parse_args(argv)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value}: give {least} to {most}")
        return value

    return number


def main() -> None:
    arguments: Any = parse()
    begin()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
