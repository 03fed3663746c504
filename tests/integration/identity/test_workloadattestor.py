"""SPIRE's suite `workloadattestor`, and its regression of 1.14.3: who is a workload by the kernel's word alone."""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from meshwarden.v1 import resources_pb2 as resources

SLEEP = os.path.realpath("/bin/sleep")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else, and to choose a pid")

# HTTP/2 by hand, since gRPC takes no socket that somebody else has connected: preface, settings, a call without a body.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def literal(name: bytes, value: bytes) -> bytes:
    """A header field as HPACK's literal without indexing. Source: RFC 7541 §6.2.2."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"workload.spiffe.io", b"true"),
    )
)
REQUEST = (
    PREFACE
    + len(HEADERS).to_bytes(3, "big")
    + bytes([1, 0x4, 0, 0, 0, 1])
    + HEADERS
    + bytes([0, 0, 5, 0, 0x1, 0, 0, 0, 1])
    + bytes(5)
)


CHILD = """
import socket, sys
socket.socket(fileno=int(sys.argv[1])).connect(sys.argv[2])
print(flush=True)
sys.stdin.read()
"""
PYTHON = os.path.realpath("/usr/bin/python3")


def answer_to(sock: socket.socket) -> bytes:
    """All that comes until the other side has no more to say, or has ended the call."""
    received = b""
    sock.settimeout(60)
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            received += chunk
            if b"spiffe://" in received or is_over(received):
                break
    return received


def is_over(frames: bytes) -> bool:
    """Whether the only call has ended: headers that end their stream. Source: RFC 9113 §4.1, §6.2."""
    while len(frames) >= 9:
        length, kind, flags = int.from_bytes(frames[:3], "big"), frames[3], frames[4]
        if kind == 1 and flags & 1:
            return True
        frames = frames[9 + length :]
    return False


def connected_by_another(path: Path) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """A socket that a child has connected, and that we hold: the kernel names the child."""
    sock = socket.socket(socket.AF_UNIX)
    child = subprocess.Popen(
        [PYTHON, "-S", "-c", CHILD, str(sock.fileno()), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[sock.fileno()],
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    return sock, child


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def successor(pid: int) -> "subprocess.Popen[bytes]":
    """A program that fits the entry; if nobody was quicker, with a pid that has just become free."""
    LAST_PID.write_text(str(pid - 1))
    return subprocess.Popen([SLEEP, "60"])


def race(path: Path, delay_s: float) -> tuple[bool, bytes]:
    """Whether a pid was given anew between a connection and its answer, and what was answered."""
    sock, child = connected_by_another(path)
    with sock:
        sock.sendall(REQUEST)
        time.sleep(delay_s)  # the race itself: it waits for nothing
        end(child)
        process = successor(child.pid)
        try:
            return process.pid == child.pid, answer_to(sock)
        finally:
            end(process)


@ROOT
@pytest.mark.skipif(not LAST_PID.exists(), reason="needs a kernel with ns_last_pid")
async def test_workloadattestor(agent: Any, control_plane: Any, entry: Any, until: Any) -> None:
    wanted = resources.Selectors(uid=0, path=SLEEP)
    control_plane.push(entries=entry.set(entry.of("acme", "web", selectors=wanted)))
    await agent.ready()
    right = agent.exec("web", SLEEP, "60")
    keys = agent.state_dir / "run/workloads"
    await until(lambda: list(keys.glob("*/credentials/tls.key")), "who fits has its identity")

    # A caller that ends, and whose pid is a fitting program's before the agent answers.
    rng, raced = random.Random(5), 0
    for number in range(30):
        delay_s = rng.uniform(0, 0.004) if number % 2 else 0.0
        reused, answer = await asyncio.to_thread(race, agent.workload_api, delay_s)
        raced += reused
        assert b"spiffe://" not in answer
    assert raced > 0
    status = await agent.status()
    assert [workload["pid"] for workload in status["workloads"]] == [right.pid]

    # Who does not fit is refused, and the node's owner is told by which selector, and what it wants.
    sock, child = connected_by_another(agent.workload_api)
    with sock:
        sock.sendall(REQUEST)
        assert is_over(await asyncio.to_thread(answer_to, sock))
    await asyncio.to_thread(end, child)
    refused = next(item for item in (await agent.status())["refused"] if item["pid"] == child.pid)
    assert refused["entry"] == "acme/web"
    assert refused["reason"] == f"its executable is {PYTHON}, the entry wants {SLEEP}"
    # The control plane hears which entry and which selector, and nothing of their values.
    await until(lambda: control_plane.last("health") and control_plane.last("health").refused, "it is told")
    told = control_plane.last("health").refused[0]
    assert (told.tenant, told.entry, list(told.selectors)) == ("acme", "web", ["path"])
    # SPIRE 1.14.3: selectors stay out of the log.
    assert SLEEP not in agent.log.read_text()
