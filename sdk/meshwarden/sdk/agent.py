"""The program's link to its node agent: who the program is, whom to trust, what to enforce; and its calls, counted.

    link = AgentLink.of_process()     # one per process, made at the first need
    link.config.spiffe_id

Two daemon threads keep it: one watches the configuration and comes back after each loss of the agent, one hands over
the counts every second. While the agent is away the last configuration stands.

A child made by fork has none of these threads; it gets a link of its own, and leaves its parent's alone.
"""

import atexit
import contextlib
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final

import grpc

from meshwarden.certs.clock import seconds_of, utc_now
from meshwarden.certs.error import CertsError
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.sdk.config import Config, read
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.error import AgentAway, NotStarted
from meshwarden.sdk.red.count import Counter
from meshwarden.sdk.tracing.loss import CALL, QUEUE_FULL, REFUSED, Losses
from meshwarden.sdk.tracing.numbered import Number, Numbers
from meshwarden.v1 import quota_service_pb2, workload_service_pb2, workload_service_pb2_grpc

SOCKET_VARIABLE: Final = "MESHWARDEN_AGENT_SOCKET"
START_S: Final = 15.0
_REPORT_EVERY_S: Final = 1.0
_REPORT_TIMEOUT_S: Final = 15.0
_LAST_REPORT_S: Final = 2.0
_BACKOFF_S: Final = (0.1, 5.0)
# The agent's own limit on names and roots is far below.
_MAX_CONFIG_BYTES: Final = 8 << 20
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_CONFIG_BYTES),
    # C-core's own wait between attempts to connect would outlast ours.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_log = logging.getLogger("meshwarden.sdk")
# Whether the agent has the report is not known, or it will take it later: it goes again, and the agent takes it once.
_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }
)


@dataclass(frozen=True)
class _Report:
    number: Number
    request: workload_service_pb2.ReportCallsRequest


class AgentLink:
    """The link to the agent on one socket. Safe to share between threads.

    Attributes:
        made: that of this process; None until `of_process` makes it.
        socket: the agent's.
        counter: counts calls until they are reported.
        losses: what the program has lost of its telemetry; the agent is told.
        denials: who was refused of late.
        last_config: the last configuration; None before the first. It is asked at each call.
    """

    _lock = threading.Lock()
    made: ClassVar["AgentLink | None"] = None
    # Of a child's parents: to let go of a channel that another process has made may end this one.
    _inherited: Final[list["AgentLink"]] = []

    def __init__(self, socket: Path, clock: Callable[[], datetime] = utc_now, rng: random.Random | None = None) -> None:
        """Starts watching; returns at once."""
        self.socket = socket
        self.counter = Counter(clock)
        self._now_s = seconds_of(clock)
        self.losses = Losses()
        self.denials = Denials()
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries
        self._flushing = threading.Lock()
        self._numbers = Numbers()
        self._report: _Report | None = None
        self._told = 0
        self._changed = threading.Condition()
        self.last_config: Config | None = None
        self._fault = ""
        self._listeners: list[Callable[[Config], None]] = []
        self._observed: tuple[Callable[[], list[workload_service_pb2.ConcurrencyState]], ...] = ()
        self._closing = threading.Event()
        self._pid = os.getpid()
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._stub = workload_service_pb2_grpc.WorkloadServiceStub(self._channel)
        self._stream: grpc.Call | None = None
        self._watching = threading.Thread(target=self._watch, name="meshwarden-watch", daemon=True)
        self._reporting = threading.Thread(target=self._report_steadily, name="meshwarden-report", daemon=True)
        self._watching.start()
        self._reporting.start()

    @classmethod
    def of_process(cls) -> "AgentLink":
        """Returns the link of this process, made from its environment at the first call.

        Raises:
            NotStarted: the environment names no agent.
        """
        return cls._begin() if cls.made is None else cls.made

    @classmethod
    def _begin(cls) -> "AgentLink":
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
        """In a child made by fork: it gets a link of its own at the first need."""
        cls._lock = threading.Lock()  # another thread of the parent may have held it
        if cls.made is not None:
            cls._inherited.append(cls.made)
            cls.made = None

    @property
    def config(self) -> Config:
        """The last configuration.

        Raises:
            AgentAway: there has been none yet; `wait` for it.
        """
        config = self.last_config
        if config is None:
            raise AgentAway(f"{self.socket}: the agent has not said yet who this program is")
        return config

    def wait(self, timeout_s: float = START_S) -> Config:
        """Waits for the first configuration.

        Raises:
            AgentAway: none came in time; the message has the reason.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.last_config is not None or self._closing.is_set(), timeout_s)
            if self.last_config is None:
                raise AgentAway(
                    f"{self.socket}: no configuration from the node agent within {timeout_s:g} s "
                    f"({self._fault or 'no answer'}): is it running, and was this program started with "
                    "`meshwarden-agent exec`?"
                )
            return self.last_config

    def denied(self, peer: VerifiedPeer) -> str | None:
        """Why a peer is refused though its certificate is good, now: a hook for `PeerVerifier`."""
        config = self.last_config
        if config is None or not config.deny_list:
            return None
        return config.deny_list.names(str(peer.spiffe_id), peer.leaf.serial_number, self._now_s()) or None

    def listen(self, listener: Callable[[Config], None]) -> None:
        """Calls `listener` with the configuration of the moment, if there is one, and with each that follows."""
        with self._changed:
            self._listeners.append(listener)
            if self.last_config is not None:
                listener(self.last_config)

    def unlisten(self, listener: Callable[[Config], None]) -> None:
        """Calls it no more."""
        with self._changed:
            self._listeners.remove(listener)

    def share(self, reports: Iterator[quota_service_pb2.ShareRequest]) -> Iterator[quota_service_pb2.ShareResponse]:
        """Streams reports of usage to the agent, and its answers back.

        Raises:
            grpc.RpcError: while iterating: the stream broke off.
            ValueError: the link is closed.
        """
        answers: Iterator[quota_service_pb2.ShareResponse] = self._stub.Share(reports)
        return answers

    @contextlib.contextmanager
    def leaving(self, timeout_s: float) -> Iterator[bool]:
        """Has the agent take this program's server out of the mesh, for the length of the block.

        Gives whether the server was told by then to have its callers leave: an agent that is away, doesn't know how, or
        says nothing for `timeout_s` has not.
        """
        answered, heard = threading.Event(), threading.Event()

        def listen(stream: Iterator[workload_service_pb2.LeaveResponse]) -> None:
            with contextlib.suppress(grpc.RpcError):
                for _ in stream:
                    heard.set()
                    answered.set()
            answered.set()

        try:
            stream = self._stub.Leave(workload_service_pb2.LeaveRequest())
        except ValueError:  # the link is closed
            yield False
            return
        threading.Thread(target=listen, args=(stream,), name="meshwarden-leave", daemon=True).start()
        try:
            answered.wait(timeout_s)
            yield heard.is_set()
        finally:
            stream.cancel()

    def observe(self, states: Callable[[], list[workload_service_pb2.ConcurrencyState]]) -> None:
        """Tells the agent with each report how it is with calls at once, as `states` says then."""
        self._observed = (*self._observed, states)

    def unobserve(self, states: Callable[[], list[workload_service_pb2.ConcurrencyState]]) -> None:
        """Asks it no more."""
        self._observed = tuple(one for one in self._observed if one != states)

    def flush(self, timeout_s: float = _REPORT_TIMEOUT_S) -> None:
        """Hands over the counts, and what was lost; what the agent can't take now goes again the next time."""
        with self._flushing:  # none may overtake the other
            if self._report is None or self._is_answered(self._report, timeout_s):
                self._report = self._next_report()
                if self._report is not None and self._is_answered(self._report, timeout_s):
                    self._report = None

    def _next_report(self) -> _Report | None:
        tables, dropped = self.counter.take(), self.counter.dropped
        self.losses.add(CALL, QUEUE_FULL, dropped - self._told)
        self._told = dropped
        drops = self.losses.take()
        concurrency = [state for states in self._observed for state in states()]
        if not tables and not drops and not concurrency:
            return None
        request = workload_service_pb2.ReportCallsRequest(call_tables=tables, drops=drops, concurrency=concurrency)
        return _Report(self._numbers.next(), request)

    def _is_answered(self, report: _Report, timeout_s: float) -> bool:
        """Sends a report; whether it is not to be sent again."""
        try:
            self._stub.Report(report.request, timeout=timeout_s, metadata=report.number.metadata)
        except grpc.RpcError as error:
            if _code(error) in _AGAIN:
                return False
            # Sent again it might be refused for ever.
            self.losses.put_back(report.request.drops)
            self.losses.add(CALL, REFUSED, sum(sum(table.counts) for table in report.request.call_tables))
            _log.warning("the node agent did not take counts of calls: %s", _reason(error))
        except ValueError:  # the channel was closed meanwhile
            return False
        return True

    def close(self) -> None:
        """Hands over what is left, for a few seconds at most, and ends the threads."""
        if not self._is_ours() or self._closing.is_set():
            return
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        # To close the channel below a report would lose it.
        self._reporting.join(_LAST_REPORT_S)
        if not self._reporting.is_alive():
            self.flush(_LAST_REPORT_S)
        self._channel.close()
        self._watching.join(_LAST_REPORT_S)

    def _is_ours(self) -> bool:
        """Whether this process made it: a child must not use its channel, nor report what its parent reports."""
        return self._pid == os.getpid()

    def _watch(self) -> None:
        least_s, most_s = _BACKOFF_S
        pause_s = least_s
        while not self._closing.is_set():
            try:
                stream = self._stub.Watch(workload_service_pb2.WatchConfigRequest())
                self._stream = stream
                for message in stream:
                    pause_s = least_s
                    self._apply(message)
            except grpc.RpcError as error:
                self._say(_reason(error))
            except ValueError:  # the channel is closed
                return
            self._closing.wait(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, most_s)

    def _apply(self, message: workload_service_pb2.WorkloadConfig) -> None:
        before = self.last_config
        try:
            config = read(message, before)
        except CertsError as error:
            self._say(f"a configuration that can't be used: {error}")
            return
        with self._changed:
            self.last_config = config
            self._fault = ""
            self._changed.notify_all()
            for listener in self._listeners:
                listener(config)

    def _say(self, fault: str) -> None:
        if fault != self._fault and not self._closing.is_set():
            _log.warning("node agent at %s: %s; the last configuration stands", self.socket, fault)
        self._fault = fault

    def _report_steadily(self) -> None:
        while not self._closing.wait(_REPORT_EVERY_S):
            self.flush()


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.Call) else None


def _reason(error: grpc.RpcError) -> str:
    if not isinstance(error, grpc.Call):
        return str(error)
    code = error.code()
    return f"{code.name if code else 'UNKNOWN'}: {error.details()}"


def _close_at_exit() -> None:
    """Closes the link of this process. Known to `atexit` before any provider of telemetry is, so that it comes last."""
    link = AgentLink.made
    if link is not None:
        link.close()


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=AgentLink._leave_to_parent)
