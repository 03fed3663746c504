"""A service whose answers don't end, behind an Envoy: plain HTTP on 127.0.0.1:$MESHWARDEN_PORT.

GET /        a line ten times a second, until the caller goes
GET /healthz 200
"""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LINE_S = 0.1


class Held(BaseHTTPRequestHandler):
    """Answers with chunks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers for ever, but for who asks how it is."""
        self.send_response(200)
        if self.path == "/healthz":
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"1\r\n\n\r\n")
                time.sleep(LINE_S)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """The mesh counts the calls."""


class Server(ThreadingHTTPServer):
    """Ends with the process, whoever still listens."""

    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["MESHWARDEN_PORT"])), Held).serve_forever()
