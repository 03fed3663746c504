"""The billing service: plain HTTP on 127.0.0.1:$MESHWARDEN_PORT until SIGTERM. It knows nothing of TLS.

GET /invoices/<id>    an invoice, and who asked for it, as the Envoy before it has proved
GET /healthz          200
"""

import argparse
import json
import logging
import os
import re
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from meshwarden.examples import trace
from meshwarden.sdk import telemetry

_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;"]*)(?:;|$)')
_SPIFFE = re.compile(r"(spiffe://[^/]+/)tenant/([^/]+)/service/([^/]+)")
_INVOICE = re.compile(r"/invoices/([A-Za-z0-9-]{1,64})")


def caller_of(header: str) -> dict[str, str]:
    """Reads who called from Envoy's X-Forwarded-Client-Cert; empty strings where it doesn't say.

    The last element is of the nearest proxy, ours: its own identity says which trust domain's tenants are ours.
    """
    elements = _ELEMENT.findall(header)
    pairs = {key.lower(): value.strip('"') for key, value in _PAIR.findall(elements[-1])} if elements else {}
    known = _SPIFFE.fullmatch(pairs.get("uri", ""))
    if known is None or not (pairs.get("by") or str(known[0])).startswith(str(known[1])):
        return {"spiffe_id": "", "tenant": "", "service": ""}
    return {"spiffe_id": known[0], "tenant": known[2], "service": known[3]}


class Billing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "billing"
    sys_version = ""
    timeout = 300
    # Otherwise each answer waits for the acknowledgement of its headers.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "serving"})
            return
        with trace.span("GET /invoices/{id}", dict(self.headers), kind="server"):
            wanted = _INVOICE.fullmatch(self.path)
            if wanted is None:
                self._answer(404, {"error": "try /invoices/1"})
                return
            caller = caller_of(self.headers.get("x-forwarded-client-cert", ""))
            self._answer(200, {"id": wanted[1], "amount": "42.00", "caller": caller, **caller})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """The mesh counts the calls."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that goes away in the middle is nothing to report."""
        logging.debug("connection of %s ended", client_address, exc_info=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="billing", description=__doc__)
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    port = os.environ.get("MESHWARDEN_PORT")
    if not port:
        parser.error("MESHWARDEN_PORT is not set: give the entry a port, or `meshwarden-agent exec --port`")
    telemetry.configure()
    with Server(("127.0.0.1", int(port)), Billing) as server:

        def stop(*_: object) -> None:
            # shutdown() waits for the loop that this thread runs.
            threading.Thread(target=server.shutdown).start()

        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, stop)
        logging.info("billing on 127.0.0.1:%s", port)
        server.serve_forever(poll_interval=0.1)
    logging.info("billing stopped")


if __name__ == "__main__":
    main()
