"""Calls that go on while parts of the mesh are moved: gRPC in Python and in Node, HTTP through each node's Envoy."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.upgrade.parts import DEADLINE_S, Mesh, until
from tests.upgrade.release import Release

from meshwarden.controlplane.local.mesh import environment

NODE_CLIENT = Path(__file__).parents[1] / "e2e" / "node"
RATE = 10
# One of a batch of the Node client's follows the other.
BATCH = 20
CALLS: dict[str, dict[str, Any]] = {
    "grpc": {"op": "grpc", "target": "xds:///orders", "method": "Get", "timeout_s": 20},
    "http": {"op": "http", "host": "billing.platform", "path": "/invoices/1", "timeout_s": 20},
}
FINE = {"grpc": "OK", "http": "200", "node": "OK"}


class Program:
    """A program that answers a line of JSON by one."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log, self._turn = process, log, asyncio.Lock()

    @classmethod
    async def start(
        cls, mesh: Mesh, version: Release, who: tuple[str, str, str], *command: str, cwd: Path
    ) -> "Program":
        """Starts it as an instance: (node, entry, instance)."""
        log = mesh.plan.logs / f"{who[2]}.log"
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *mesh.exec(version, *who, "--", *command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(mesh.plan),
                cwd=cwd,
                start_new_session=True,
            )
        return cls(process, log)

    async def ask(self, **fields: Any) -> dict[str, Any]:
        """What it answers."""
        async with self._turn:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(fields).encode() + b"\n")
            async with asyncio.timeout(DEADLINE_S):
                line = await self._process.stdout.readline()
        assert line, f"it ended: {self._log.read_text(errors='replace')[-2000:]}"
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer
        return answer

    async def end(self) -> None:
        """Ends it once it has answered all that it was asked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await self._process.wait()
        if self._process.returncode is None:
            os.killpg(self._process.pid, 9)
            await self._process.wait()


class Load:
    """All callers; `counts` is {(caller, kind): {code: calls}}, `failed` what is said of those that failed."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.counts: dict[tuple[str, str], Counter[str]] = {}
        self.failed: list[str] = []
        self._python: dict[str, Program] = {}
        self._batches: asyncio.Task[None] | None = None
        self._node: Program | None = None
        self._is_over = asyncio.Event()

    async def start(self, name: str, version: Release) -> None:
        """Starts a caller as a version: one in Python on each node, and "node", which is on the first."""
        if name == "node":
            command = ("node", "client.js", str(files("meshwarden.examples.orders") / "orders.proto"))
            who = ("node-a", "acme/web", "node")
            self._node = await Program.start(self._mesh, version, who, *command, cwd=NODE_CLIENT)
            await until(self._node_answers, "the Node client's calls pass")
            self._is_over.clear()
            self._batches = asyncio.ensure_future(self._go_on())
            return
        who = (name, "acme/web" if name == "node-a" else "globex/web", f"caller-{name}")
        command = (version.python, "-m", "meshwarden.examples.probe")
        program = self._python[name] = await Program.start(self._mesh, version, who, *command, cwd=self._mesh.plan.logs)
        for kind in CALLS:
            await until(lambda kind=kind: self._passes(program, kind), f"{kind} calls of {name} pass")
            await self.resume(name, kind)

    async def resume(self, name: str, kind: str) -> None:
        """Begins with calls."""
        await self._python[name].ask(op="steady_start", id=kind, call={**CALLS[kind], "rate": RATE})

    async def pause(self, name: str, kind: str) -> None:
        """Ends with calls, and notes what became of them."""
        self._note(name, kind, await self._python[name].ask(op="steady_stop", id=kind))

    @contextlib.asynccontextmanager
    async def held_up(self, node: str) -> AsyncIterator[None]:
        """Leaves the node's own Envoys alone meanwhile; who calls those of the other node goes on."""
        await self.pause(node, "http")
        yield
        program = self._python[node]
        await until(lambda: self._passes(program, "http"), f"calls through {node}'s Envoy pass again")
        await self.resume(node, "http")

    async def stop(self, name: str) -> None:
        """Ends a caller, and notes what became of its calls."""
        if name == "node":
            assert self._node is not None
            assert self._batches is not None
            self._is_over.set()
            await self._batches
            await self._node.end()
            return
        for kind in CALLS:
            await self.pause(name, kind)
        await self._python.pop(name).end()

    async def once(self, node: str, kind: str, **more: Any) -> str:
        """The code of a call beside the others."""
        answer = await self._python[node].ask(**{**CALLS[kind], **more})
        (code,) = answer["codes"]
        return str(code)

    async def kill(self) -> None:
        """Ends all that is left."""
        self._is_over.set()
        if self._batches is not None:
            self._batches.cancel()
        for program in (*self._python.values(), *([self._node] if self._node is not None else ())):
            await program.end()

    async def _passes(self, program: Program, kind: str) -> bool:
        answer = await program.ask(**CALLS[kind], count=5)
        assert set(answer["codes"]) == {FINE[kind]}, answer
        return True

    async def _node_answers(self) -> bool:
        assert self._node is not None
        return set((await self._node.ask(target="xds:///orders"))["codes"]) == {"OK"}

    async def _go_on(self) -> None:
        assert self._node is not None
        while not self._is_over.is_set():
            self._note("node-a", "node", await self._node.ask(target="xds:///orders", count=BATCH, timeout_s=20))
            await asyncio.sleep(BATCH / RATE / 2)

    def _note(self, name: str, kind: str, answer: dict[str, Any]) -> None:
        self.counts.setdefault((name, kind), Counter()).update(answer["codes"])
        if set(answer["codes"]) - {FINE[kind]}:
            self.failed.append(f"{name} {kind}: {answer['codes']} {answer.get('errors')} {answer.get('failed')}")
