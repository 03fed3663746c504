"""A steady load on the sample services: what `web` and `intruder` do."""

import argparse
import http.client
import logging
import os
import time
from collections import Counter

import grpc

from meshwarden import sdk
from meshwarden.examples import trace
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
from meshwarden.examples.outbound import OUTBOUND_VARIABLE, Outbound
from meshwarden.sdk import telemetry
from meshwarden.sdk.stop import Stop

TIMEOUT_S = 5.0
SUMMARY_S = 10.0


class Load:
    """Calls orders, and billing where there is an Envoy, again and again until it is told to stop."""

    def __init__(self, name: str, orders: str, billing: str) -> None:
        self._name = name
        self._orders = orders
        self._billing = billing
        self._outbound = Outbound(timeout_s=TIMEOUT_S) if os.environ.get(OUTBOUND_VARIABLE) else None
        self._codes: Counter[str] = Counter()

    def run(self, rate: float, stop: Stop) -> None:
        """Makes `rate` rounds a second, of one call to each service in one trace, until it is told to stop."""
        begun_s = said_s = time.monotonic()
        rounds = 0
        with sdk.channel(self._orders) as channel:
            stub = orders_pb2_grpc.OrdersStub(channel)
            while not stop.wait(max(0.0, begun_s + rounds / rate - time.monotonic())):
                rounds += 1
                with trace.span(self._name):
                    self._codes[f"orders {self._call_orders(stub)}"] += 1
                    if self._outbound is not None:
                        self._codes[f"billing {self._call_billing(self._outbound)}"] += 1
                if time.monotonic() - said_s >= SUMMARY_S:
                    said_s = time.monotonic()
                    self._summarise()
        self._summarise()

    def _call_orders(self, stub: orders_pb2_grpc.OrdersStub) -> str:
        try:
            stub.Get(orders_pb2.GetRequest(id="1"), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
        return "OK"

    def _call_billing(self, outbound: Outbound) -> str:
        try:
            with trace.span("GET"):
                return str(outbound.get(self._billing, "/invoices/1", trace.headers()).status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    def _summarise(self) -> None:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self._codes.items()))
        logging.info("%s: %s", self._name, counts or "no calls yet")
        self._codes.clear()


def main(name: str, rate: float, about: str | None) -> None:
    """Runs a load until SIGTERM."""
    parser = argparse.ArgumentParser(prog=name, description=about)
    parser.add_argument("--rate", type=float, default=rate, help="rounds of calls a second (default %(default)s)")
    parser.add_argument("--orders", default="xds:///orders", metavar="TARGET", help="(default %(default)s)")
    parser.add_argument("--billing", default="billing.platform", metavar="HOST", help="(default %(default)s)")
    arguments = parser.parse_args()
    if not 0 < arguments.rate <= 1000:
        parser.error("--rate: give more than 0 and at most 1000")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    telemetry.configure()
    Load(name, arguments.orders, arguments.billing).run(arguments.rate, Stop())
