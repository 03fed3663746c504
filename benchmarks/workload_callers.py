"""Programs that each ask a Workload API for their X.509-SVID and keep the stream open: one process and user each.

    python -m benchmarks.workload_callers SOCKET FIRST_UID COUNT

It needs root, to be each of the users. Each process is a fork of a small one that speaks just enough HTTP/2 by hand,
so that hundreds take little memory. It writes a line of JSON once all have theirs, and ends when its input does.
"""

import json
import os
import signal
import socket
import struct
import sys
import time

ATTEMPTS, PAUSE_S = 60, 1.0
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_WANTED = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("workload.spiffe.io", "true"),
)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


def _request() -> bytes:
    """The preface, and the one call. Source: RFC 9113 §3.4, RFC 7541 §6.2.2 (literals, not indexed)."""
    headers = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in _WANTED)
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0)
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, bytes(5))  # an empty message
    )


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        if not (more := connection.recv(size - len(found))):
            raise EOFError
        found += more
    return found


def _be(path: str, user: int, told: int) -> None:
    """In a process of its own: calls until there is an answer, as every client does, and says so."""
    os.setgroups(())
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    for _ in range(ATTEMPTS):
        if _call(path, told):
            return
        time.sleep(PAUSE_S)


def _call(path: str, told: int) -> bool:
    """Calls, says when there is an answer, and answers pings until the other side ends; whether there was one."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.sendall(_request())
    is_answered = False
    while True:
        try:
            head = _exactly(connection, 9)
            payload = _exactly(connection, int.from_bytes(head[:3], "big"))
        except EOFError:
            return is_answered
        kind, flags = head[3], head[4]
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            connection.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind in (_RST, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
            connection.close()
            return is_answered
        elif kind == _DATA and not is_answered:
            os.write(told, b"\n")
            os.close(told)
            is_answered = True


def main() -> int:
    """Returns the exit code: 1 if one of them was refused."""
    path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    children: list[int] = []
    try:
        told = _told(path, range(first, first + count), children)
        print(json.dumps({"told": told}), flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        sys.stdin.read()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return 0 if told == count else 1


def _told(path: str, users: range, children: list[int]) -> int:
    """Starts a process for each user, adds them to `children`, and returns how many have got an answer once all have.

    Those that are refused time and again end, so that nobody waits for them.
    """
    reading, writing = os.pipe()
    for user in users:
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                _be(path, user, writing)
            except OSError:
                pass
            finally:
                os._exit(1)
        children.append(child)
    os.close(writing)
    told = 0
    while told < len(users) and (lines := os.read(reading, len(users))):
        told += len(lines)
    return told


if __name__ == "__main__":
    sys.exit(main())
