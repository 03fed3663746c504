"""Spans of a program with the SDK, to the span: its agent is stopped, killed and slow, and the program makes too many.

The program counts what it makes and the backend what it gets, by ids; the mesh's own counts must say the same.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.test_river import STAGES, Backend, Server, found_mesh, through

TENANT = "acme"
# Makes spans until it is told to "end"; some thousands of large ones when it is told so. Says what its SDK logs.
# Between it and its agent is a wire of its own, so that it stays the one who calls: told to "hold" it lets no answer
# through, and told to "cut" it ends all connections with what it has held.
PROGRAM = """
import logging, os, socket, sys, tempfile, threading
directory = tempfile.TemporaryDirectory()
wire, agent = os.path.join(directory.name, "wire"), os.environ["MESHWARDEN_AGENT_SOCKET"]
flows, ends = threading.Event(), []
flows.set()
def carry(source, target, is_answer):
    try:
        while data := source.recv(65536):
            if is_answer and not flows.is_set():
                flows.wait()
                break
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
def connect():
    while True:
        near, far = listening.accept()[0], socket.socket(socket.AF_UNIX)
        try:
            far.connect(agent)
        except OSError:
            near.close()
            continue
        ends.extend((near, far))
        for way in ((near, far, False), (far, near, True)):
            threading.Thread(target=carry, args=way, daemon=True).start()
listening = socket.socket(socket.AF_UNIX)
listening.bind(wire)
listening.listen()
threading.Thread(target=connect, daemon=True).start()
os.environ["MESHWARDEN_AGENT_SOCKET"] = wire
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "unix:" + wire
from opentelemetry import trace
from meshwarden.sdk.tracing import otlp
from meshwarden.sdk import telemetry
from meshwarden.sdk.agent import AgentLink
otlp.TIMEOUT_S = 2.5
saying = threading.Lock()
def say(word, what):
    with saying:
        print(word, what, flush=True)
class Say(logging.Handler):
    def emit(self, record):
        say("log", record.getMessage())
logging.getLogger("meshwarden.sdk").addHandler(Say())
assert telemetry.configure()
tracer, made, ended = trace.get_tracer("test"), [0, 0], threading.Event()
def work():
    while not ended.is_set():
        with tracer.start_as_current_span("work"):
            tracer.start_span("part").end()
        made[0] += 2
        if made[0] % 100 == 0:
            ended.wait(0.02)
working = threading.Thread(target=work)
working.start()
for line in sys.stdin:
    if line.strip() == "end":
        break
    if line.strip() == "large":
        for _ in range(4000):
            tracer.start_span("large", attributes={"text": "x" * 4000}).end()
            made[1] += 1
    if line.strip() == "hold":
        flows.clear()
    if line.strip() == "cut":
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        flows.set()
    if line.strip() == "count":
        say("count", sum(made))
    if line.strip() == "lost":
        say("lost", AgentLink.of_process().losses.total)
ended.set()
working.join()
say("made", sum(made))
"""
# A child made by fork amid its parent's spans has spans of its own, and none of its parent's.
FORKING = """
import os, sys
from opentelemetry import trace
from meshwarden.sdk import telemetry
assert telemetry.configure()
tracer = trace.get_tracer("test")
def make(count):
    for _ in range(count):
        tracer.start_span("work").end()
make(700)
child = os.fork()
make(300 if child else 50)
if child:
    assert os.waitpid(child, 0)[1] == 0
    print("made", 1050, flush=True)
"""


class Program:
    """A program of the tenant, and what it says."""

    def __init__(self, agent: Any, source: str) -> None:
        self.lines: list[str] = []
        self.process = agent.exec(f"{TENANT}/web", sys.executable, "-c", source)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def tell(self, word: str) -> None:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def said(self, word: str) -> list[str]:
        return [line for line in self.lines if line.startswith(word)]

    def end(self) -> int:
        """Waits for its end; returns how many spans it says that it has made."""
        assert self.process.wait(120) == 0, self.process.stderr.read()
        self._reader.join(60)
        (made,) = self.said("made")
        return int(made.split()[1])


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    found = Backend()
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def server(short_dir: Path, backend: Backend) -> Iterator[Server]:
    found = Server(short_dir, backend)
    yield found
    found.kill()


@pytest.fixture
async def agent(short_dir: Path, server: Server, entry: Any, until: Any, agent_of: Any) -> Any:
    """The agent, joined to a control plane that runs."""
    await server.start(until)
    token = await found_mesh(server, entry)
    roots = (short_dir / "server" / "ca.pem").read_bytes()
    made = agent_of(SimpleNamespace(port=server.port, bundle=SimpleNamespace(pem=lambda: roots)))
    (short_dir / "token").write_text(token)
    return await made.ready()


def account(server: Server, backend: Backend, made: int) -> dict[str, Any]:
    """What the mesh says of the spans, and both ends."""
    counts = server.counts()
    stored = counts.get(("passed", "control.store", TENANT, ""), 0)
    dropped = {key[1:2] + key[3:]: count for key, count in counts.items() if key[0] == "dropped" and key[2] == TENANT}
    repeated = dropped.pop(("control.store", "duplicate"), 0)
    lost = dropped.pop(("sdk", "queue_full"), 0)
    return {
        "made": stored + lost == made,
        "received": counts.get(("received", "sdk", TENANT, "")) == made + repeated,
        "at the backend": len(backend.seen[TENANT]) == stored,
        "through": [stage for stage in STAGES if not through(counts, stage, TENANT)],
        "dropped otherwise": dropped,
        "lost": lost,
        "repeated": repeated,
    }


async def settled(server: Server, backend: Backend, made: int, until: Any) -> dict[str, Any]:
    """Waits until all of the spans are accounted for; returns what is said of them."""

    async def whole() -> Any:
        found = await asyncio.to_thread(account, server, backend, made)
        agree = found["made"] and found["received"] and found["at the backend"]
        return found if agree and not found["through"] and not found["dropped otherwise"] else None

    found: dict[str, Any] = await until(whole, "every span is accounted for", 120)
    return found


async def test_every_span_of_a_program_is_accounted_for(
    server: Server, backend: Backend, agent: Any, until: Any
) -> None:
    async def asked(program: Program, word: str) -> int:
        said = len(program.said(word))
        program.tell(word)
        await until(lambda: len(program.said(word)) > said, "it answers", 60)
        return int(program.said(word)[-1].split()[1])

    async def more(program: Program, count: int = 500) -> None:
        """Waits until a program has made so many spans more, as it counts."""
        before = await asked(program, "count")
        while await asked(program, "count") < before + count:
            pass

    async def end(program: Program, before: int = 0) -> tuple[int, dict[str, Any]]:
        """Ends a program; returns how many spans have been made, and what is said of them."""
        program.tell("end")
        made = before + await asyncio.to_thread(program.end)
        return made, await settled(server, backend, made, until)

    program = Program(agent, PROGRAM)
    await until(lambda: backend.seen[TENANT], "the backend has spans", 60)
    # Its agent does not answer for longer than the SDK waits for it.
    agent.send(signal.SIGSTOP)
    await until(lambda: len(program.said("log spans wait")) == 1, "an answer is late", 60)
    await more(program)
    agent.send(signal.SIGCONT)
    await more(program)
    # It takes what it is sent, but its answers are lost, for longer than the program can keep spans.
    program.tell("hold")
    program.tell("large")
    await until(lambda: len(program.said("log spans wait")) == 2, "an answer is late", 60)
    while not await asked(program, "lost"):
        pass
    program.tell("cut")
    await more(program)
    made, found = await end(program)
    assert found["lost"] > 0
    assert found["repeated"] == 0
    # It dies amid batches: those whose answers were lost are known by their spans' ids.
    program = Program(agent, PROGRAM)
    await more(program)
    for _ in range(3):
        await asyncio.to_thread(agent.stop, signal.SIGKILL)
        await more(program)
        await agent.ready()
        await more(program)
    assert (await end(program, made))[1]["lost"] == found["lost"]


async def test_a_child_made_by_fork_has_its_own_spans_alone(
    server: Server, backend: Backend, agent: Any, until: Any
) -> None:
    made = await asyncio.to_thread(Program(agent, FORKING).end)
    assert made == 1050

    found = await settled(server, backend, made, until)
    assert (found["lost"], found["repeated"]) == (0, 0)
