"""A plain HTTP program behind an Envoy that writes down when each call was served, and whose the Envoy says it was."""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    file = -1

    def do_GET(self) -> None:
        if self.path == "/calls":  # and no health check
            self._count()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def _count(self) -> None:
        os.write(self.file, f"{time.monotonic()} {self.headers['x-meshwarden-tenant']}\n".encode())

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    Served.file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["MESHWARDEN_PORT"])), Served).serve_forever()


if __name__ == "__main__":
    main()
