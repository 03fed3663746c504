"""The mesh as it changes, for many who watch: looked at once for all, composed once for all who watch the same.

A viewer asks for what is new since what it has seen. Whoever asks first when it is time looks; the others wait for
that. Nothing is queued for anybody: one who has missed a scene is told all of the newest.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from meshwarden.controlplane.api.errors import Busy
from meshwarden.controlplane.api.live.look import Look
from meshwarden.controlplane.api.live.scene import Scene, Scope, compose
from meshwarden.v1.console_service_pb2 import WatchMeshResponse

PAUSE_S: Final = 0.5
# So much longer than a look took does the next wait: a large mesh is looked at less often, and never all the time.
SHARE: Final = 4.0
# What all who watch are sent, serialised, at most: many of them wait longer for what is large.
BYTES_PER_S: Final = 6 << 20
VIEWERS_PER_CALLER: Final = 16
MAX_VIEWERS: Final = 512
MAX_SCOPES: Final = 64


@dataclass
class _View:
    """What those who watch one scope are told."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    viewers: int = 0
    version: int = 0
    scene: Scene | None = None
    # The version before is told the change, whoever else all of it; made when somebody needs it.
    change: WatchMeshResponse | None = None
    whole: WatchMeshResponse | None = None
    due_s: float = 0.0


class Feed:
    """Tells of the mesh as it changes."""

    def __init__(self, look: Callable[[], Awaitable[Look]], frame: WatchMeshResponse) -> None:
        """Tells what `look` sees; `frame` says who tells it."""
        self._look, self._frame = look, frame
        self._views: dict[Scope, _View] = {}
        self._callers: Counter[str] = Counter()
        self._looking = anyio.Lock()
        self._seen: tuple[float, float, Look] | None = None  # since when, how long it took, and what

    async def watch(self, scope: Scope, caller: str) -> AsyncGenerator[WatchMeshResponse, None]:
        """Yields all there is, then what changes; a message is everybody's, and nobody's to change.

        Args:
            scope: what to tell of.
            caller: who watches, of whom only so many may at once.

        Raises:
            Busy: too many do.
        """
        with self._entered(scope, caller) as view:
            version = 0
            while True:
                message, version = await self._next(scope, view, version)
                if message is not None:
                    yield message

    @contextmanager
    def _entered(self, scope: Scope, caller: str) -> Iterator[_View]:
        if self._callers[caller] >= VIEWERS_PER_CALLER or self._callers.total() >= MAX_VIEWERS:
            raise Busy(f"as many watch the mesh as may: {VIEWERS_PER_CALLER} of one caller, {MAX_VIEWERS} of all")
        if scope not in self._views and len(self._views) >= MAX_SCOPES:
            raise Busy(f"as many different views of the mesh are watched as may be: {MAX_SCOPES}")
        view = self._views.setdefault(scope, _View())
        view.viewers += 1
        self._callers[caller] += 1
        try:
            yield view
        finally:
            view.viewers -= 1
            self._callers[caller] -= 1
            if not view.viewers:
                del self._views[scope]
            if not self._callers[caller]:
                del self._callers[caller]

    async def _next(self, scope: Scope, view: _View, known: int) -> tuple[WatchMeshResponse | None, int]:
        """What is new to one who knows a version, and the version that is."""
        if view.version <= known or view.scene is None:
            async with view.lock:
                if view.version <= known or view.scene is None:
                    await self._renew(scope, view)
        if known == view.version:
            return None, known
        if known and known == view.version - 1:
            return view.change, view.version
        if view.whole is None and view.scene is not None:
            view.whole = view.scene.since(None)
        return view.whole, view.version

    async def _renew(self, scope: Scope, view: _View) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, view.due_s - loop.time()))
        look = await self._looked(view.due_s)
        begun_s = loop.time()
        scene = compose(look, scope, self._frame, view.scene)
        change = scene.since(view.scene)
        if view.scene is None or change is not None:
            view.version += 1
            view.scene, view.change, view.whole = scene, change, None
        took_s, sent_bytes = loop.time() - begun_s, change.ByteSize() if change is not None else 0
        view.due_s = loop.time() + max(PAUSE_S, SHARE * took_s, sent_bytes * self._callers.total() / BYTES_PER_S)

    async def _looked(self, since_s: float) -> Look:
        """A look of `since_s` or later, or of a moment ago where the next is not due."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if self._seen is None or loop.time() >= self._seen[0] + max(PAUSE_S / 2, SHARE * self._seen[1]):
                begun_s = loop.time()
                look = await self._look()
                self._seen = loop.time(), loop.time() - begun_s, look
            return self._seen[2]
