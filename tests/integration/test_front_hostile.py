"""The front with hostile clients before it: garbage, floods, silence."""

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from meshwarden.sdk.mtls.front import FrontLimits

sys.path.insert(0, str(Path(__file__).parent))

from front_world import AUTHORITY, SERVER_NAME, call, client_context, raw_tls, tls_channel, until, world


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"a" * 70000])
async def test_garbage_does_no_harm(tmp_path: Path, garbage: bytes) -> None:
    async with world(tmp_path) as made:
        for open_connection in (
            asyncio.open_connection("127.0.0.1", made.port),
            asyncio.open_unix_connection(made.unix),
        ):
            reader, writer = await open_connection
            writer.write(garbage)
            try:
                async with asyncio.timeout(60):
                    while await reader.read(65536):
                        pass
            except ConnectionError:
                pass
            writer.close()
        async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            assert "web" in await call(channel)


async def test_half_open_handshakes_keep_nobody_out(tmp_path: Path) -> None:
    async with world(tmp_path, FrontLimits(handshakes=64, handshake_s=30)) as made, AsyncExitStack() as opened:
        before = len(os.listdir("/proc/self/fd"))  # of whatever ran before in this process, too
        for _ in range(1000):
            sock = opened.enter_context(socket.socket())
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", made.port))
        async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            assert "web" in await call(channel)
        assert len(os.listdir("/proc/self/fd")) < before + 1000 + 64 + 200


async def test_who_says_nothing_is_let_go(tmp_path: Path) -> None:
    async with world(tmp_path, FrontLimits(handshake_s=0.2, first_byte_s=0.2)) as made:
        for open_connection in (
            asyncio.open_connection("127.0.0.1", made.port),
            asyncio.open_unix_connection(made.unix),
            asyncio.open_connection("127.0.0.1", made.port, ssl=client_context(), server_hostname=SERVER_NAME),
        ):
            reader, writer = await open_connection
            async with asyncio.timeout(60):
                assert await reader.read() == b""
            writer.close()
        await until(lambda: not made.front.connections(), "all are gone")


async def test_who_shows_no_certificate_keeps_nobody_out(tmp_path: Path) -> None:
    async with world(tmp_path, FrontLimits(connections=64, anonymous=8)) as made:
        held = [await raw_tls(made, None) for _ in range(100)]
        assert len(made.front.connections()) == 8
        async with tls_channel(made.port, AUTHORITY.svid("web")) as known, tls_channel(made.port, None) as unknown:
            assert "web" in await call(known)
            assert (await call(unknown)).startswith("- ")
        for writer in held:
            writer.close()


async def test_one_identity_keeps_no_other_out(tmp_path: Path) -> None:
    async with world(tmp_path, FrontLimits(connections=8)) as made:
        greedy = AUTHORITY.svid("greedy")
        held = [await raw_tls(made, greedy) for _ in range(8)]
        await until(lambda: len(made.front.connections()) == 8, "all are in")
        one_more = await raw_tls(made, greedy)
        await until(one_more.transport.is_closing, "it is refused")
        assert not any(writer.transport.is_closing() for writer in held)
        async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            assert "web" in await call(channel)
            await until(held[0].transport.is_closing, "the oldest made room")
            assert len(made.front.connections()) == 8
        for writer in [*held, one_more]:
            writer.close()


async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with world(tmp_path, FrontLimits(connections=3)) as made:
        held = [await asyncio.open_unix_connection(made.unix) for _ in range(3)]
        await until(lambda: len(made.front.connections()) == 3, "three are in")
        reader, writer = await asyncio.open_unix_connection(made.unix)
        assert await reader.read() == b""
        writer.close()
        held.pop()[1].close()
        await until(lambda: len(made.front.connections()) == 2, "one has left")
        async with grpc.aio.insecure_channel(f"unix:{made.unix}") as channel:
            assert await call(channel)
        for _, each in held:
            each.close()


async def test_running_out_of_descriptors_is_survived(tmp_path: Path) -> None:
    script = Path(__file__).with_name("front_exhaustion.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["served", "exhausted", "served-on", "recovered"]


async def test_connections_leave_nothing_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        async with grpc.aio.insecure_channel(f"unix:{made.unix}") as channel:
            await call(channel)
        await until(lambda: not made.front.connections(), "warm")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            _, writer = await asyncio.open_unix_connection(made.unix)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            await writer.drain()
            writer.write_eof()  # half closed
            writer.close()
        await until(lambda: not made.front.connections(), "all are gone")
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor stays open")
        assert os.listdir(tmp_path / "inner") == ["grpc.sock"]
