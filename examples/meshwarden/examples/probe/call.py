"""The calls that the probe can make, on connections that it keeps."""

import http.client
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
from meshwarden.examples.outbound import OUTBOUND_VARIABLE, Outbound
from meshwarden.examples.probe.tally import Outcome

MAX_BODY = 4096
Metadata = tuple[tuple[str, str | bytes], ...]


class Connections:
    """The channels and connections of the probe, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[tuple[str, str], grpc.Channel] = {}
        self._outbounds: dict[tuple[str, int], tuple[Outbound, threading.Lock]] = {}

    def grpc_call(self, said: Mapping[str, Any]) -> Callable[[int], Outcome]:
        """Returns what makes the call of a `grpc` request."""
        target, method = str(said.get("target", "xds:///orders")), str(said.get("method", "Get"))
        channel = self._channel(str(said.get("channel", "default")), target, bool(said.get("throttled", False)))
        metadata = tuple((str(key).lower(), str(value)) for key, value in said.get("metadata", {}).items())
        ask = _method(orders_pb2_grpc.OrdersStub(channel), method, said)
        timeout_s = float(said.get("timeout_s", 5.0))

        def call(_: int) -> Outcome:
            try:
                return _answered(ask(timeout_s, metadata))
            except grpc.RpcError as error:
                return _refused(error)

        return call

    def http_call(self, said: Mapping[str, Any]) -> Callable[[int], Outcome]:
        """Returns what makes the call of an `http` request."""
        if not os.environ.get(OUTBOUND_VARIABLE):
            raise ValueError(f"{OUTBOUND_VARIABLE} is not set: this entry has no Envoy")
        host, path = str(said.get("host", "billing.platform")), str(said.get("path", "/invoices/1"))
        headers = {str(key): str(value) for key, value in said.get("headers", {}).items()}
        name, timeout_s = str(said.get("connection", "default")), float(said.get("timeout_s", 5.0))

        def call(worker: int) -> Outcome:
            outbound, turn = self._outbound(name, worker, timeout_s)
            with turn:
                return _http(outbound, host, path, headers)

        return call

    def close(self) -> None:
        """Closes them all."""
        for channel in self._channels.values():
            channel.close()
        for outbound, _ in self._outbounds.values():
            outbound.close()

    def _channel(self, name: str, target: str, throttled: bool) -> grpc.Channel:
        with self._lock:
            found = self._channels.get((name, target))
            if found is None:
                # Else channels to one server share their connections.
                options = [("grpc.use_local_subchannel_pool", 1)]
                # Who measures what servers refuse must not be kept from asking.
                found = self._channels[name, target] = sdk.channel(target, options=options, throttled=throttled)
            return found

    def _outbound(self, name: str, worker: int, timeout_s: float) -> tuple[Outbound, threading.Lock]:
        with self._lock:
            found = self._outbounds.get((name, worker))
            if found is None:
                found = self._outbounds[name, worker] = (Outbound(timeout_s=timeout_s), threading.Lock())
            return found


def _method(
    stub: orders_pb2_grpc.OrdersStub, method: str, said: Mapping[str, Any]
) -> Callable[[float, Metadata], Iterable[orders_pb2.Order]]:
    number, messages = str(said.get("id", "1")), int(said.get("messages", 1))
    if method == "Get":
        get = orders_pb2.GetRequest(id=number)
        return lambda timeout_s, metadata: [stub.Get(get, timeout=timeout_s, metadata=metadata)]
    if method == "Review":
        review = orders_pb2.ReviewRequest(id=number)
        return lambda timeout_s, metadata: [stub.Review(review, timeout=timeout_s, metadata=metadata)]
    if method == "List":
        everything = orders_pb2.ListRequest()
        return lambda timeout_s, metadata: stub.List(everything, timeout=timeout_s, metadata=metadata).orders
    if method == "Watch":
        watch = orders_pb2.WatchRequest(id=number, interval_ms=int(said.get("interval_ms", 10)), count=messages)
        return lambda timeout_s, metadata: list(stub.Watch(watch, timeout=timeout_s, metadata=metadata))
    raise ValueError(f"method {method!r}: give Get, List, Review or Watch")


def _answered(orders: Iterable[orders_pb2.Order]) -> Outcome:
    order = next(iter(orders), orders_pb2.Order())
    said = {
        "versions": order.version,
        "instances": order.instance,
        "tenants": order.tenant,
        "spiffe_ids": order.spiffe_id,
    }
    return Outcome("OK", failed=False, said=said)


def _refused(error: grpc.RpcError) -> Outcome:
    if not isinstance(error, grpc.Call):
        return Outcome("UNKNOWN", failed=True, error=str(error))
    code = error.code()
    headers, trailing = _text(error.initial_metadata()), _text(error.trailing_metadata())
    name = code.name if code is not None else "UNKNOWN"
    return Outcome(name, failed=True, error=f"{name}: {error.details()}", headers=headers, trailing=trailing)


def _text(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    return {str(key): str(value) for key, value in metadata or ()}


def _http(outbound: Outbound, host: str, path: str, headers: dict[str, str]) -> Outcome:
    try:
        answer = outbound.get(host, path, headers)
    except (OSError, http.client.HTTPException) as error:
        return Outcome(type(error).__name__, failed=True, error=f"{type(error).__name__}: {error}")
    body = answer.body.decode(errors="replace")
    said: dict[str, str] = {}
    if answer.status == 200:
        try:
            caller = json.loads(body)
            said = {"tenants": str(caller["tenant"]), "spiffe_ids": str(caller["spiffe_id"])}
        except (ValueError, KeyError, TypeError):
            said = {}  # another path than that of invoices
    error_text = "" if answer.status < 400 else f"{answer.status}: {body[:500]}"
    return Outcome(
        str(answer.status),
        failed=answer.status >= 400,
        error=error_text,
        said=said,
        body=body[:MAX_BODY],
        reconnected=answer.reconnected,
    )
