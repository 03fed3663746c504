"""Answers the control plane's questions what a data plane of this node has, one at a time.

An Envoy is asked itself; of a gRPC program, which nobody can ask, the agent says what it has answered to.
"""

import asyncio
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from meshwarden.agents.envoy import admin, dump
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot

PART_BYTES: Final = 256 << 10
MAX_BYTES: Final = 3 << 20
"""Of an answer, compressed; beyond, the bodies of resources are left out."""
_MAX_ERROR: Final = 1024

_log = structlog.get_logger()


class Had(Protocol):
    """Who knows what data planes have answered to; `DataPlanes`."""

    def had(self, data_plane: str) -> tuple[list[Snapshot], list[node_pb.Nack]]:
        """What each stream of a data plane has answered to, and what it refuses; without a stream, nothing."""


class _Unknown(Exception):
    """There is no answer; the message says why."""


class Questions:
    """Answers in the order of the questions; a newer one takes the place of one that waits."""

    def __init__(
        self,
        sockets: Callable[[], dict[str, Path]],
        had: Callable[[], Had | None],
        say: Callable[[Sequence[node_pb.DataPlaneAnswer]], None],
    ) -> None:
        """Says whom to ask.

        Args:
            sockets: where Envoys take questions: {workload id: socket}.
            had: who knows what gRPC programs have.
            say: takes the parts of an answer.
        """
        self._sockets, self._had, self._say = sockets, had, say
        self._waiting: node_pb.DataPlaneQuestion | None = None
        self._work = asyncio.Event()

    def ask(self, question: node_pb.DataPlaneQuestion) -> None:
        """Takes a question."""
        self._waiting = question
        self._work.set()

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            question, self._waiting = self._waiting, None
            if question is None:
                continue
            try:
                content = await self._answer(question.data_plane)
            except (_Unknown, dump.NoDump, OSError) as error:
                text = f"{question.data_plane}: {error or type(error).__name__}"[:_MAX_ERROR]
                _log.info("question not answered", data_plane=question.data_plane, reason=text)
                self._say([node_pb.DataPlaneAnswer(id=question.id, last=True, error=text)])
                continue
            parts = [content[first : first + PART_BYTES] for first in range(0, len(content), PART_BYTES)]
            self._say(
                [
                    node_pb.DataPlaneAnswer(id=question.id, part=part, last=number == len(parts))
                    for number, part in enumerate(parts, 1)
                ]
            )

    async def _answer(self, data_plane: str) -> bytes:
        workload, _, kind = data_plane.rpartition("/")
        if kind == "envoy":
            socket = self._sockets().get(workload)
            if socket is None:
                raise _Unknown("there is no such Envoy here")
            said = await admin.config_dump(socket)
            return await asyncio.to_thread(lambda: _packed("envoy", dump.read(said), []))
        planes = self._had()
        snapshots, nacks = planes.had(data_plane) if planes is not None else ([], [])
        if not snapshots:
            raise _Unknown("no program of it asks for configuration at present")
        items = (item for one in snapshots for named in one.resources.values() for item in named.values())
        held = {(item.type_url, item.name): item for item in items}
        return await asyncio.to_thread(lambda: _packed("agent", list(map(_row, held.values())), nacks))


def _row(item: Resource) -> dict[str, Any]:
    row = {"type_url": item.type_url, "name": item.name, "version": item.version}
    if item.type_url == api.SECRET:
        return row | {"body": {}}
    try:
        body = api.to_dict(api.parse(item.type_url.rpartition("/")[2], item.body))
    except (api.ApiError, TypeError):  # of a newer control plane
        return row
    return row | {"body": dump.without_secrets(body)}


def _packed(source: str, rows: list[dict[str, Any]], nacks: Sequence[node_pb.Nack]) -> bytes:
    refused = [{"type_url": nack.type_url, "version": nack.version, "message": nack.message} for nack in nacks]
    answer = {"source": source, "resources": rows, "refused": refused}
    content = zlib.compress(json.dumps(answer).encode())
    if len(content) <= MAX_BYTES:
        return content
    bare = [{key: value for key, value in row.items() if key != "body"} for row in rows]
    content = zlib.compress(json.dumps(answer | {"resources": bare, "cut": True}).encode())
    if len(content) > MAX_BYTES:
        raise _Unknown(f"it has {len(rows)} resources, whose names alone are more than {MAX_BYTES} bytes")
    return content
