"""The HTTP samples: billing, and the probe's way to it. A forwarder stands where the Envoys would."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ACME = "spiffe://mesh.test/tenant/acme/service/web"


class Forwarder:
    """A Unix socket that leads to a TCP port."""

    def __init__(self, path: Path, port: int) -> None:
        self._port = port
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._open: list[socket.socket] = []
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def cut(self) -> None:
        """Breaks all connections."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            far = socket.create_connection(("127.0.0.1", self._port))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pour, args=(source, sink), daemon=True).start()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
    source.close()


@pytest.fixture
def billing(mesh: Any, port: int, until: Callable[..., Any]) -> Iterator[tuple[Forwarder, Any]]:
    program = mesh.run([sys.executable, "-m", "meshwarden.examples.billing"], {"MESHWARDEN_PORT": str(port)})

    def is_open() -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    until(is_open, "billing")
    path = mesh.directory / "outbound.sock"
    forwarder = Forwarder(path, port)
    calling = mesh.workload("acme", "web")
    calling.variables["MESHWARDEN_OUTBOUND"] = os.fspath(path)
    yield forwarder, calling
    forwarder.close()
    assert program.end() == 0, program.log


def test_the_probe_reads_who_billing_takes_it_for_on_kept_connections(mesh: Any, billing: Any) -> None:
    forwarder, calling = billing
    probe = calling.start("-m", "meshwarden.examples.probe")
    headers = {"X-Forwarded-Client-Cert": f"URI={ACME}"}
    answer = probe.ask("http", count=200, concurrency=4, headers=headers)
    assert answer["codes"] == {"200": 200}, answer
    assert answer["tenants"] == {"acme": 200}
    assert answer["spiffe_ids"] == {ACME: 200}
    assert '"id": "1"' in answer["bodies"][0]
    assert (forwarder.accepted, answer["reconnects"]) == (4, 0)


def test_a_connection_cut_between_calls_is_made_anew_and_said(mesh: Any, billing: Any) -> None:
    forwarder, calling = billing
    probe = calling.start("-m", "meshwarden.examples.probe")
    assert probe.ask("http")["codes"] == {"200": 1}
    forwarder.cut()
    answer = probe.ask("http", count=5)
    assert (answer["codes"], answer["reconnects"]) == ({"200": 5}, 1)


def test_other_answers_are_counted_by_their_status(mesh: Any, billing: Any) -> None:
    _, calling = billing
    probe = calling.start("-m", "meshwarden.examples.probe")
    answer = probe.ask("http", path="/nothing", count=3)
    assert answer["codes"] == {"404": 3}
    assert answer["errors"][0].startswith("404: ")
    assert probe.ask("http", path="/healthz")["codes"] == {"200": 1}


def test_one_trace_goes_to_both_services(mesh: Any, billing: Any, until: Callable[..., Any]) -> None:
    _, calling = billing
    serving, _ = mesh.orders()
    probe = calling.start("-m", "meshwarden.examples.probe")
    answer = probe.ask("trace")
    assert answer["codes"] == {"orders": "OK", "billing": "200"}, answer
    until(
        lambda: answer["trace_id"] in {span.trace_id.hex() for span in serving.agent.spans},
        "the trace at the agent of orders",
    )
