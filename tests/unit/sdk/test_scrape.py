"""The pages' server: answers scrapers, and neither strangers' names nor anything but GET."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import pytest

from meshwarden.sdk.scrape import Page, serve_pages, url_of

LONG = b"x" * 5000


async def metrics(accept: str) -> tuple[str, bytes]:
    return "text/plain", f"accept={accept}".encode()


async def long(_: str) -> tuple[str, bytes]:
    return "text/plain", LONG


async def away(_: str) -> tuple[str, bytes]:
    raise FileNotFoundError("no such socket")


def find(path: str) -> Page | None:
    return {"/metrics": metrics, "/long": long, "/away": away, "/a#1/metrics": metrics}.get(path)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with serve_pages("127.0.0.1", 0, find) as port:
        yield port


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


def get(path: str, *headers: str, host: str = "127.0.0.1:9") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


async def test_a_page_and_its_accept_header(port: int) -> None:
    answer = await ask(port, get("/metrics?x=1", "Accept: a/b;q=1"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\naccept=a/b;q=1")
    assert (await ask(port, get("/a%231/metrics"))).startswith(b"HTTP/1.1 200 ")


async def test_a_connection_serves_many_requests(port: int) -> None:
    assert (await ask(port, get("/metrics") * 3)).count(b"HTTP/1.1 200 OK") == 3
    assert (await ask(port, get("/metrics", "Connection: close") * 3)).count(b"HTTP/1.1 200 OK") == 1


async def test_much_goes_compressed_to_whoever_can_read_it(port: int) -> None:
    answer = await ask(port, get("/long", "Accept-Encoding: gzip"))
    assert gzip.decompress(answer.partition(b"\r\n\r\n")[2]) == LONG
    assert (await ask(port, get("/long"))).endswith(LONG)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/other"), 404),
        (get("/away"), 502),
        (get("/metrics", host="evil.example"), 421),
        (get("/metrics", host="evil.example:9"), 421),
        (get("/metrics", host="127.0.0.1.evil.example"), 421),
        (get("/metrics", host=""), 421),
        (get("/metrics", host="10.0.0.1"), 421),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (get("/metrics", "Content-Length: 5"), 400),
        (get("/metrics", "Transfer-Encoding: chunked"), 400),
        (get("/metrics", "no colon"), 400),
        (get("/metrics", "Name : x"), 400),
        (b"GET http://localhost/metrics HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x00\xff\r\n\r\n", 400),
        (b"GET /metrics HTTP/3\r\n\r\n", 400),
        (get("/metrics", "A: " + "x" * 20_000), 431),
    ],
)
async def test_what_is_refused(port: int, request_bytes: bytes, status: int) -> None:
    assert (await ask(port, request_bytes)).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("host", ["localhost", "localhost:7444", "[::1]:7444", "[::1]", "127.0.0.1", "127.8.9.1:1"])
async def test_every_name_of_loopback_is_taken(port: int, host: str) -> None:
    assert (await ask(port, get("/metrics", host=host))).startswith(b"HTTP/1.1 200 ")


async def test_one_that_says_nothing_is_no_trouble(port: int) -> None:
    assert await ask(port, b"") == b""
    assert await ask(port, b"GET /metr") == b""
    assert (await ask(port, get("/metrics"))).startswith(b"HTTP/1.1 200 ")


def test_urls() -> None:
    assert url_of("127.0.0.1", 1, "/metrics") == "http://127.0.0.1:1/metrics"
    assert url_of("::1", 1, "/metrics") == "http://[::1]:1/metrics"
