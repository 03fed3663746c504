"""Runs the probe. `meshwarden.examples.probe` has its protocol."""

import json
import logging
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from cryptography import x509

from meshwarden.examples import trace
from meshwarden.examples.probe import tally
from meshwarden.examples.probe.call import Connections
from meshwarden.sdk import telemetry
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.error import SdkError

MAX_LINE = 1 << 20
MAX_CONCURRENCY = 64
MAX_STEADY = 64


class Probe:
    """Answers requests."""

    def __init__(self) -> None:
        self._connections = Connections()
        self._pool = ThreadPoolExecutor(MAX_STEADY, thread_name_prefix="steady")
        self._steady: dict[str, tuple[threading.Event, Future[dict[str, Any]]]] = {}
        self._never = threading.Event()
        self._ops = {
            "grpc": self._call,
            "http": self._call,
            "steady_start": self._start,
            "steady_stop": self._stop,
            "trace": self._trace,
            "identity": self._identity,
        }

    def answer(self, line: str) -> dict[str, Any]:
        """Answers one line; what is wrong with it is in the answer."""
        op = None
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise TypeError("a request is a JSON object")
            op = request.get("op")
            if op not in self._ops:
                raise ValueError(f"op {op!r}: give one of {', '.join(self._ops)}")
            return {"op": op, **self._ops[op](request)}
        except (ValueError, TypeError, KeyError, AttributeError, OSError, SdkError) as error:
            return {"op": op, "error": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Ends all that goes on."""
        for stop, _ in self._steady.values():
            stop.set()
        self._pool.shutdown()
        self._connections.close()

    def _call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        pace = _pace(request, count=1)
        if pace.count == 0 and pace.duration_s == 0:
            raise ValueError("count 0: give a duration_s, or use steady_start")
        return self._run(pace, request, self._never)

    def _run(self, pace: tally.Pace, request: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        call = (
            self._connections.grpc_call(request)
            if request.get("op") == "grpc"
            else self._connections.http_call(request)
        )
        return tally.run(pace, call, stop)

    def _start(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, call = str(request["id"]), request["call"]
        if call.get("op") not in ("grpc", "http"):
            raise ValueError("call: its op is grpc or http")
        if name in self._steady or len(self._steady) >= MAX_STEADY:
            raise ValueError(f"id {name!r}: goes on already, or too many do")
        stop = threading.Event()
        self._steady[name] = stop, self._pool.submit(self._run, _pace(call, count=0), call, stop)
        return {"id": name}

    def _stop(self, request: Mapping[str, Any]) -> dict[str, Any]:
        stop, running = self._steady.pop(str(request["id"]))
        stop.set()
        return {"id": str(request["id"]), **running.result()}

    def _trace(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not trace.HAS_SPANS:
            raise ValueError("opentelemetry-sdk is not installed")
        with trace.span("probe"):
            orders = self._connections.grpc_call({**request, "channel": "trace"})(0)
            with trace.span("GET"):
                billing = self._connections.http_call({**request, "headers": trace.headers(), "connection": "trace"})(0)
            found = trace.trace_id()
        return {"trace_id": found, "codes": {"orders": orders.code, "billing": billing.code}}

    def _identity(self, _: Mapping[str, Any]) -> dict[str, Any]:
        config = AgentLink.of_process().wait()
        leaf = x509.load_pem_x509_certificate(Path(config.credentials, "tls.crt").read_bytes())
        return {
            "spiffe_id": str(config.spiffe_id),
            "tenant": config.spiffe_id.tenant,
            "service": config.spiffe_id.service,
            "revision": config.revision,
            "serial": f"{leaf.serial_number:x}",
            "not_before": leaf.not_valid_before_utc.isoformat(),
            "not_after": leaf.not_valid_after_utc.isoformat(),
        }


def _pace(request: Mapping[str, Any], count: int) -> tally.Pace:
    pace = tally.Pace(
        count=int(request.get("count", count)),
        rate=float(request.get("rate", 0)),
        concurrency=int(request.get("concurrency", 1)),
        duration_s=float(request.get("duration_s", 0)),
    )
    if pace.count < 0 or pace.rate < 0 or pace.duration_s < 0 or not 1 <= pace.concurrency <= MAX_CONCURRENCY:
        raise ValueError(f"count, rate and duration_s: 0 or more; concurrency: 1 to {MAX_CONCURRENCY}")
    return pace


def serve(source: TextIO, sink: TextIO) -> None:
    """Answers each line of `source` on `sink` until its end."""
    probe = Probe()
    try:
        while line := source.readline(MAX_LINE):
            sink.write(json.dumps(probe.answer(line)) + "\n")
            sink.flush()
    finally:
        probe.close()


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    telemetry.configure()
    serve(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
