"""The kernel's word about who is on a Unix socket."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meshwarden.sdk.mtls import connection
from meshwarden.sdk.mtls.connection import PeerUnknown, ended, identify, start_time

CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print("up", flush=True); sys.stdin.read()
"""


@pytest.fixture
def listener(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        sock.settimeout(60)
        yield sock


@pytest.fixture
def caller(listener: socket.socket):
    command = [sys.executable, "-c", CONNECT, listener.getsockname()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_caller_is_named_with_its_pid_user_and_start(listener: socket.socket, caller: subprocess.Popen) -> None:
    with listener.accept()[0] as sock:
        found = identify(sock)
    assert (found.pid, found.uid, found.gid) == (caller.pid, os.getuid(), os.getgid())
    assert found.start_time == start_time(caller.pid)
    assert not ended(found.pidfd)
    os.close(found.pidfd)


def test_a_kernel_without_peer_pidfd_is_served_too(
    listener: socket.socket, caller: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SO_PEERPIDFD", 9999)  # the kernel says ENOPROTOOPT, as old ones do
    with listener.accept()[0] as sock:
        found = identify(sock)
    assert found.pid == caller.pid
    os.close(found.pidfd)


@pytest.mark.parametrize("option", [connection.SO_PEERPIDFD, 9999])
@pytest.mark.parametrize("reap", [False, True])
def test_a_dead_caller_is_refused(
    listener: socket.socket, caller: subprocess.Popen, reap: bool, option: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SO_PEERPIDFD", option)
    before = len(os.listdir("/proc/self/fd"))
    with listener.accept()[0] as sock:
        caller.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, caller.pid, os.WEXITED | os.WNOWAIT)
        if reap:
            caller.wait()
        with pytest.raises(PeerUnknown, match="ended"):
            identify(sock)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_with_parentheses_and_spaces_does_not_mislead() -> None:
    rename = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b'a) 1 (b c)', 0, 0, 0); print('up', flush=True); "
    with subprocess.Popen(
        [sys.executable, "-c", rename + "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        renamed = start_time(process.pid)
        assert 0 <= renamed - start_time(os.getpid()) < 1_000_000
        process.kill()
