"""`meshwarden up`: brings a mesh up step by step, shows it, and takes it down again whatever happens."""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import grpc.aio

from meshwarden.controlplane.local import context as contexts
from meshwarden.controlplane.local import kernel, sample, table
from meshwarden.controlplane.local.check.result import CheckResult
from meshwarden.controlplane.local.down import clean, forget
from meshwarden.controlplane.local.error import LocalError, leaves
from meshwarden.controlplane.local.handle import MeshHandle
from meshwarden.controlplane.local.lock import alone, make_ours
from meshwarden.controlplane.local.mesh import LocalMesh, rank
from meshwarden.controlplane.local.operator import wait_for
from meshwarden.controlplane.local.otlp import OtlpReceiver, receiver
from meshwarden.controlplane.local.plan import NODES, Options, Plan, refuse_another, refuse_unfit
from meshwarden.controlplane.local.process import Children, children
from meshwarden.controlplane.local.record import FILE, UP, Record
from meshwarden.controlplane.local.state import Keeper
from meshwarden.controlplane.local.voice import Voice
from meshwarden.v1.resources_pb2 import Resource

LINE_S = 5.0
APPLY_S = 30.0


def up(options: Options, voice: Voice, clock: Callable[[], datetime], rng: random.Random) -> bool:
    """Runs a mesh until it is told to stop; returns whether all checks held (True without `--check`).

    Raises:
        LocalError: it could not be started; nothing of it is left.
    """
    refuse_unfit(options)
    contexts.refuse_unwritable()
    plan = Plan(options.state_dir)
    make_ours(plan)
    with alone(plan):
        for region in options.plans():
            refuse_another(region, options)
        running = _Up(plan, options, voice, clock, rng)
        try:
            anyio.run(running.run)
            return running.verdict("interrupted")
        except BaseException as error:
            found = _first(error)
            running.verdict(str(found))
            raise found from (error if isinstance(error, BaseExceptionGroup) else error.__cause__)
        finally:
            _tidy(plan, voice)


def _tidy(plan: Plan, voice: Voice) -> None:
    """Ends what a child left in a session of its own, and takes away what pointed to the mesh."""
    kernel.sweep(str(plan.state_dir))
    try:
        forget(plan.state_dir)
        (plan.state_dir / FILE).unlink(missing_ok=True)
    except (OSError, LocalError) as error:
        voice.warn(f"not tidied up: {error}")


class _Up:
    def __init__(
        self, plan: Plan, options: Options, voice: Voice, clock: Callable[[], datetime], rng: random.Random
    ) -> None:
        self._plan = plan
        self._options = options
        self._voice = voice
        self._clock = clock
        self._rng = rng
        self._is_stopping = False
        self._results: list[CheckResult] = []

    def verdict(self, otherwise: str) -> bool:
        """Says what the checks came to, and returns whether all hold: True without `--check`.

        Args:
            otherwise: why those that did not run have not.
        """
        if not self._options.check:
            return True
        from meshwarden.controlplane.local.check.run import checks_of

        known = {result.name: result for result in self._results}
        names = checks_of(vault=self._options.vault, vault_away=self._options.vault_away)
        results = [
            known.get(name) or CheckResult(name, False, f"not run: {' '.join(otherwise.split())}") for name in names
        ]
        ok = all(result.ok for result in results)
        if self._options.json:
            rows = [{"name": result.name, "ok": result.ok, "detail": result.detail} for result in results]
            print(json.dumps({"checks": rows, "ok": ok}), flush=True)
        else:
            failed = [result.name for result in results if not result.ok]
            self._voice.say(f"{len(results)} checks, all hold" if ok else f"failed: {', '.join(failed)}")
        return ok

    async def run(self) -> None:
        """Brings it up, keeps it until it is told to stop, and takes it down."""
        if await asyncio.to_thread(clean, self._plan.state_dir, self._voice.warn):
            self._voice.warn("these were left by a mesh that was killed")
        record = Record(self._plan.state_dir)
        record.add(UP, os.getpid(), 0.0)
        async with anyio.create_task_group() as signals:
            stop = anyio.CancelScope()
            async with children(record, self._trouble, self._rng, rank) as kept:
                await signals.start(self._listen, stop, kept)
                with stop:
                    await self._work(kept)
                self._is_stopping = True
                if kept.names:
                    self._voice.warn("stopping …")
            signals.cancel_scope.cancel()
        self._voice.warn("stopped")

    async def _listen(
        self, stop: anyio.CancelScope, kept: Children, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        """Stops on the first signal; on the second waits for nobody."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                if self._is_stopping or stop.cancel_called:
                    self._voice.warn(f"{signal.Signals(number).name} again: killing what is left")
                    kept.kill()
                stop.cancel()

    def _trouble(self, text: str) -> None:
        self._voice.warn(text)

    async def _work(self, kept: Children) -> None:
        meshes = [LocalMesh(plan, self._options, kept, self._rng) for plan in self._options.plans()]
        async with AsyncExitStack() as stack:
            for mesh in meshes:
                stack.push_async_callback(_shielded, mesh.close)
            otlp = await stack.enter_async_context(receiver()) if self._options.check else None
            await self._start(meshes, otlp)
            # The first one last: it is to be the current one.
            names = [_write_context(mesh) for mesh in reversed(meshes)][::-1]
            async with self._kept(meshes) as keeper:
                if self._options.check:
                    await self._check(meshes[0].handle(names[0], keeper.state.up_json, otlp))
                    return
                if self._options.json:
                    print(json.dumps(keeper.state.up_json), flush=True)
                for state, name in zip(keeper.states, names, strict=True):
                    for text in table.summary(state, str(self._plan.logs), name):
                        self._voice.say(text)
                self._voice.say("Ctrl-C or `meshwarden down` stops it.")
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._options.for_s):
                        await self._show(keeper)

    async def _start(self, meshes: Sequence[LocalMesh], otlp: OtlpReceiver | None) -> None:
        """Starts the parts in order."""
        voice = self._voice
        for mesh in meshes:
            await asyncio.to_thread(mesh.prepare)
        if self._options.vault:
            with voice.step("OpenBao"):
                await meshes[0].start_vault()
        reach = {mesh.plan.region: self._options.reach.get(mesh.plan.region, mesh.address) for mesh in meshes}
        with voice.step("control plane"):
            for mesh in meshes:
                mesh.vault = meshes[0].vault
                await asyncio.to_thread(mesh.take_root)
                own = mesh.plan.region
                await mesh.start_control_plane(otlp, {region: reach[region] for region in reach if region != own})
        with voice.step("node agents"):
            for mesh in meshes:
                for agent in mesh.plan.agents:
                    await mesh.start_agent(agent)
            for mesh in meshes:
                await mesh.wait_for_agents()
        await self._start_samples(meshes)

    async def _start_samples(self, meshes: Sequence[LocalMesh]) -> None:
        """Gives each region the same manifests, and runs the same samples there."""
        if not meshes[0].samples:
            return
        with self._voice.step("manifests of the samples"):
            located = sample.manifests(self._options.samples, os.getuid(), *NODES)
            resources = [item.resource for item in located]
            for mesh in meshes:
                await wait_for("the manifests are taken", partial(_apply, mesh, resources), APPLY_S)
        with self._voice.step("sample workloads") as note:
            for mesh in meshes:
                for item in mesh.samples:
                    await mesh.start_sample(item)
            for mesh in meshes:
                await mesh.wait_for_samples(note)

    @asynccontextmanager
    async def _kept(self, meshes: Sequence[LocalMesh]) -> AsyncIterator[Keeper]:
        """Writes up.json and keeps it current while the body runs."""
        keeper = Keeper(meshes, self._trouble)
        await keeper.refresh()
        async with anyio.create_task_group() as group:
            group.start_soon(keeper.run)
            group.start_soon(meshes[0].keep_vault_open)
            try:
                yield keeper
            finally:
                group.cancel_scope.cancel()

    async def _show(self, keeper: Keeper) -> None:
        """Shows the state until cancelled."""
        if self._voice.is_live:
            with self._voice.table() as show:
                while True:
                    show(table.tables(keeper.states, self._clock()))
                    await asyncio.sleep(1)
        while True:
            for text in table.lines(keeper.states, self._clock()):
                self._voice.say(text)
            await asyncio.sleep(LINE_S)

    async def _check(self, handle: MeshHandle) -> None:
        """Runs the checks and says of each what was seen."""
        from meshwarden.controlplane.local.check.run import run_checks

        self._voice.warn("checks:")

        def report(result: CheckResult) -> None:
            self._results.append(result)
            self._voice.warn(f"  {'ok  ' if result.ok else 'FAIL'} {result.name}: {result.detail}")

        await run_checks(handle, report)


async def _apply(mesh: LocalMesh, resources: list[Resource]) -> int | None:
    try:
        return await mesh.operator.apply(resources)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.INVALID_ARGUMENT:  # no second try makes it right
            raise RuntimeError(f"the samples' manifests are refused: {error.details()}") from None
        raise


async def _shielded(work: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await work()


def _write_context(mesh: LocalMesh) -> str:
    """Writes the mesh's context and makes it the current one; returns its name."""
    context = mesh.context()
    _, known = contexts.load()
    name = stem = mesh.plan.named(mesh.plan.state_dir.name)
    number = 1
    while name in known and known[name].state_dir != context.state_dir:
        number += 1
        name = f"{stem}-{number}"
    contexts.put(name, context)
    return name


def _first(error: BaseException) -> BaseException:
    """The error to show of a group: one that says what to do, if there is one."""
    found = list(leaves(error))
    return next((leaf for leaf in found if isinstance(leaf, LocalError)), found[0])


def default_voice(options: Options) -> Voice:
    """Speaks on this process's streams."""
    return Voice(sys.stdout, sys.stderr, quiet=options.json)


def resolve(state_dir: Path) -> Path:
    """The state directory as all files name it: absolute, links followed."""
    return state_dir.expanduser().resolve()
