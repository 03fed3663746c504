"""The secrets that the program's workload entry names, as its agent has them.

    from meshwarden import sdk

    password = sdk.secret("db-password")      # waits for the first value; then always the newest

A rotated secret is there at the next call, without a restart. While the agent is away the last values stand.
"""

import logging
import os
import random
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final

import grpc

from meshwarden.sdk.agent import SOCKET_VARIABLE
from meshwarden.sdk.error import NotStarted, SecretMissing
from meshwarden.v1 import workload_service_pb2, workload_service_pb2_grpc

WAIT_S: Final = 15.0
_BACKOFF_S: Final = (0.1, 5.0)
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
_log = logging.getLogger("meshwarden.sdk")


class Secrets:
    """The secrets of the agent on one socket. Safe to share between threads; a child made by fork has its own."""

    _lock = threading.Lock()
    made: ClassVar["Secrets | None"] = None

    def __init__(self, socket: Path, rng: random.Random | None = None) -> None:
        """Starts watching; returns at once."""
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries
        self._changed = threading.Condition()
        self._values: Mapping[str, str] = MappingProxyType({})
        self._faults: Mapping[str, str] = MappingProxyType({})
        self._why = "the agent has not answered"
        self._closing = threading.Event()
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._stub = workload_service_pb2_grpc.WorkloadServiceStub(self._channel)
        self._stream: grpc.Call | None = None
        threading.Thread(target=self._watch, name="meshwarden-secrets", daemon=True).start()

    @classmethod
    def of_process(cls) -> "Secrets":
        """Returns those of this process, watched from the first call on.

        Raises:
            NotStarted: the environment names no agent.
        """
        with cls._lock:
            if cls.made is None:
                socket = os.environ.get(SOCKET_VARIABLE)
                if not socket:
                    raise NotStarted(
                        f"{SOCKET_VARIABLE} is not set: start the program with "
                        "`meshwarden-agent exec --entry NAME -- PROGRAM`"
                    )
                cls.made = cls(Path(socket))
            return cls.made

    @classmethod
    def _leave_to_parent(cls) -> None:
        cls._lock = threading.Lock()  # another thread of the parent may have held it
        cls.made = None

    def get(self, name: str, timeout_s: float = WAIT_S) -> str:
        """Returns the newest value of a secret; waits for the first.

        Raises:
            SecretMissing: there was none in time; the message has the reason.
        """
        with self._changed:
            self._changed.wait_for(lambda: name in self._values or self._closing.is_set(), timeout_s)
            value = self._values.get(name)
            if value is None:
                reason = self._faults.get(name) or self._why or f"the workload's entry names no secret {name!r}"
                raise SecretMissing(f"secret {name!r}: {reason}")
            return value

    def close(self) -> None:
        """Ends watching."""
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        self._channel.close()
        with self._changed:
            self._changed.notify_all()

    def _watch(self) -> None:
        least_s, most_s = _BACKOFF_S
        pause_s = least_s
        while not self._closing.is_set():
            try:
                stream = self._stub.Secrets(workload_service_pb2.SecretsRequest())
                self._stream = stream
                for message in stream:
                    pause_s = least_s
                    self._apply(message)
            except grpc.RpcError as error:
                reason = error.details() if isinstance(error, grpc.Call) else str(error)
                self._say(str(reason))
            except ValueError:  # the channel is closed
                return
            self._closing.wait(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, most_s)

    def _apply(self, message: workload_service_pb2.SecretsResponse) -> None:
        with self._changed:
            self._values = MappingProxyType({one.name: one.value for one in message.secrets if one.value})
            self._faults = MappingProxyType({one.name: one.error for one in message.secrets if one.error})
            self._why = ""
            self._changed.notify_all()

    def _say(self, why: str) -> None:
        if why != self._why and not self._closing.is_set():
            _log.warning("secrets: node agent: %s; the last values stand", why)
        self._why = why


def secret(name: str, timeout_s: float = WAIT_S) -> str:
    """Returns the newest value of a secret that this program's workload entry names.

    Args:
        name: as the entry has it.
        timeout_s: how long to wait for a first value.

    Raises:
        NotStarted: the program was not started with `meshwarden-agent exec`.
        SecretMissing: there is none; the message has the reason.
    """
    return Secrets.of_process().get(name, timeout_s)


os.register_at_fork(after_in_child=Secrets._leave_to_parent)
