"""Questions to a node's agent, one at a time, and what it answers."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from meshwarden.v1 import node_service_pb2 as v1

TIMEOUT_S: Final = 15.0
MAX_BYTES: Final = 4 << 20
"""Of an answer."""


class Unanswered(Exception):
    """There is no answer; the message says why."""


@dataclass
class _Asked:
    id: str
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    error: str = ""
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Questions:
    """What one agent is asked."""

    def __init__(self, say: Callable[[v1.SyncResponse], None]) -> None:
        """`say` tells the agent something."""
        self._say = say
        self._asked: _Asked | None = None

    async def ask(self, data_plane: str) -> bytes:
        """Asks what a data plane has; returns the whole answer.

        Raises:
            Unanswered: another question waits for its answer, or there is none, or more than we take.
        """
        if self._asked is not None:
            raise Unanswered("the node answers another question at present: ask again")
        asked = self._asked = _Asked(secrets.token_hex(8))
        self._say(v1.SyncResponse(data_plane_question=v1.DataPlaneQuestion(id=asked.id, data_plane=data_plane)))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await asked.done.wait()
        except TimeoutError:
            raise Unanswered(f"the agent has not answered within {TIMEOUT_S:g} s: is it older than we?") from None
        finally:
            self._asked = None
        if asked.error:
            raise Unanswered(asked.error)
        return b"".join(asked.parts)

    def take(self, answer: v1.DataPlaneAnswer) -> None:
        """Takes a part of an answer; what nobody waits for is dropped."""
        asked = self._asked
        if asked is None or asked.done.is_set() or not secrets.compare_digest(asked.id.encode(), answer.id.encode()):
            return
        asked.parts.append(answer.part)
        asked.size += len(answer.part)
        asked.error = answer.error
        if asked.size > MAX_BYTES:
            asked.error = f"the agent answers more than {MAX_BYTES} bytes"
        if asked.error or answer.last:
            asked.done.set()

    def close(self) -> None:
        """The session has ended."""
        if self._asked is not None:
            self._asked.error = "the session has ended"
            self._asked.done.set()
