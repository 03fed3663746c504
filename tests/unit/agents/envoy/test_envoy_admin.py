"""Whoever answers at an Envoy's admin socket, which lies where the workload's user can put anything."""

import asyncio
from pathlib import Path

import pytest

from meshwarden.agents.envoy import admin


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nLIVE\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n", True),
        (b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n", False),
        (b"HTTP/1.1 200", True),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", False),
        (b"x" * 100_000, False),
        (b"\x00\xff\r\n", False),
        (b"", False),
    ],
)
async def test_any_answer_is_a_yes_or_a_no(tmp_path: Path, answer: bytes, ready: bool) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(speak, tmp_path / "s")
    assert await admin.is_ready(tmp_path / "s") is ready
    server.close()
    await server.wait_closed()
    assert not await admin.is_ready(tmp_path / "s")


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (CHUNKED + b"5\r\nabcde\r\n3;x=y\r\nfgh\r\n0\r\n\r\n", b"abcdefgh"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcde", b"abc"),
        (CHUNKED + b"5\r\nab", None),
        (CHUNKED + b"fffffff\r\nab", None),
        (CHUNKED + b"-1\r\nab", None),
        (CHUNKED + b"x" * 100_000, None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100 + b"\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", None),
    ],
)
async def test_statistics_are_read_whole_or_not_at_all(tmp_path: Path, answer: bytes, body: bytes | None) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(speak, tmp_path / "s")
    if body is None:
        with pytest.raises(OSError):  # noqa: PT011 - whatever it says, the scrape fails
            await admin.statistics(tmp_path / "s")
    else:
        assert await admin.statistics(tmp_path / "s") == body
    server.close()
    await server.wait_closed()
