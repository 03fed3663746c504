"""A workload that does what it is told: `meshwarden.examples.probe`, started under `meshwarden-agent exec`.

It has the identity of the entry it runs as, so what it may do is what that entry's programs may do. Requests and
answers are JSON, a line each; `meshwarden.examples.probe` documents them.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meshwarden.controlplane.local.check.result import CheckFailed

ANSWER_S = 60.0
LINE_BYTES = 1 << 20


class Probe:
    """A running probe. Requests are answered one after the other."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Sends a request and returns its answer.

        Raises:
            CheckFailed: the probe ended, said that the request failed, or didn't answer in time.
        """
        async with self._turn:
            assert self._process.stdin is not None  # noqa: S101 - they are pipes: we made them
            assert self._process.stdout is not None  # noqa: S101
            self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._process.stdin.drain()
                    line = await self._process.stdout.readline()
            except (TimeoutError, ConnectionError) as error:
                raise CheckFailed(f"probe {self.name}: no answer to {op!r} ({error!r}): {self._tail()}") from None
        if not line:
            raise CheckFailed(f"probe {self.name} ended: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CheckFailed(f"probe {self.name}: {op}: {answer['error']}")
        return answer

    async def close(self) -> None:
        """Ends the probe."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:]) or "it said nothing"


@contextlib.asynccontextmanager
async def probe(
    name: str, agent: Sequence[str], socket: Path, entry: str, logs: Path, environment: Mapping[str, str]
) -> AsyncIterator[Probe]:
    """Runs a probe as an instance of `entry` on the node whose agent listens on `socket`."""
    log = logs / f"{name}.log"
    command = [*agent, "exec", "--socket", str(socket), "--entry", entry, "--instance", name, "--"]
    command += [sys.executable, "-m", "meshwarden.examples.probe"]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=LINE_BYTES,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    running = Probe(name, process, log)
    try:
        yield running
    finally:
        await running.close()
