"""The front with a real grpc.aio server behind it and real, and hostile, clients before it."""

import asyncio
import contextlib
import gc
import os
import random
import socket
import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from meshwarden.certs.clock import utc_now
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.tls import READ_BYTES, server_context

sys.path.insert(0, str(Path(__file__).parent))

from front_world import (
    AUTHORITY,
    DOMAIN,
    SERVER,
    SERVER_NAME,
    Authority,
    call,
    client_context,
    tls_channel,
    until,
    world,
)


class TestTls:
    async def test_a_peer_is_named_by_its_certificate(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            assert (await call(channel)).startswith("spiffe://mesh.test/tenant/acme/service/web None")
            assert (await call(channel, "Secret")).startswith("spiffe://")
            assert len(made.front.connections()) == 1

    async def test_who_shows_no_certificate_is_anonymous(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, None) as channel:
            assert (await call(channel)).startswith("- ")
            with pytest.raises(grpc.aio.AioRpcError, match="Secret is for web") as refused:
                await call(channel, "Secret")
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert made.refusals[0][1:] == ("/test.Test/Secret", "Secret is for web")

    async def test_a_required_certificate_is_required(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, None) as channel:
            made.context = server_context(SERVER.chain_pem(), SERVER.key_pem(), AUTHORITY.bundle.pem(), True)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    @pytest.mark.parametrize(
        ("fault", "said"),
        [("foreign", "issuer"), ("expired", "has expired"), ("not yet valid", "not yet valid")],
    )
    async def test_a_certificate_that_proves_nothing_fails_the_handshake(
        self, tmp_path: Path, fault: str, said: str
    ) -> None:
        svid = {
            "foreign": lambda: Authority().svid("web"),
            "expired": lambda: AUTHORITY.svid("web", at=utc_now() - timedelta(hours=3)),
            "not yet valid": lambda: AUTHORITY.svid("web", at=utc_now() + timedelta(hours=3)),
        }[fault]()
        async with world(tmp_path) as made, tls_channel(made.port, svid) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await until(lambda: bool(made.refusals), "the refusal is told")
            address, method, reason = made.refusals[0]
            assert address.startswith("127.0.0.1:")
            assert (method, said in reason) == ("TLS", True)

    async def test_another_domains_root_is_no_root_of_ours(self, tmp_path: Path) -> None:
        """Both roots are loaded, as with federation; the ID claims our domain, the other one signed it."""
        other = Authority("partner.test")
        forged = Authority(DOMAIN)
        pooled = AUTHORITY.bundle.pem() + other.bundle.pem() + forged.bundle.pem()
        async with world(tmp_path) as made, tls_channel(made.port, forged.svid("web")) as channel:
            made.context = server_context(SERVER.chain_pem(), SERVER.key_pem(), pooled)
            with pytest.raises(grpc.aio.AioRpcError, match="your certificate was refused") as refused:
                await call(channel)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_a_new_certificate_serves_the_next_connection_and_no_call_fails(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, AUTHORITY.svid("web")) as steady:
            for _ in range(20):
                svid = AUTHORITY.svid("server", (SERVER_NAME,))
                made.context = server_context(svid.chain_pem(), svid.key_pem(), AUTHORITY.bundle.pem())
                async with tls_channel(made.port, AUTHORITY.svid("web")) as fresh:
                    await asyncio.gather(call(fresh), call(steady))
                shown = await asyncio.to_thread(server_certificate, made.port)
                assert shown == svid.chain_der()[0]

    async def test_tls_1_2_is_refused(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made:
            client = client_context()
            client.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", made.port, ssl=client, server_hostname=SERVER_NAME)

    async def test_another_protocol_is_refused(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made:
            client = client_context()
            client.set_alpn_protocols([])
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", made.port, ssl=client, server_hostname=SERVER_NAME
            )
            assert await reader.read() == b""
            writer.close()

    async def test_a_connection_keeps_a_small_buffer(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            await call(channel)
            (live,) = made.front._live.values()
            assert len(live.outer.transport._ssl_protocol.get_buffer(-1)) == READ_BYTES

    async def test_large_messages_pass_both_ways(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            stream = channel.stream_stream("/test.Test/Echo")(timeout=50)
            for size in (1, READ_BYTES, READ_BYTES + 1, 4_000_000, 4_000_000):
                sent = random.Random(size).randbytes(size)
                await stream.write(sent)
                assert await stream.read() == sent
            stream.cancel()

    async def test_sessions_are_not_resumed(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made:
            assert not await asyncio.to_thread(gets_a_ticket, made.port)


class TestUnix:
    async def test_a_caller_is_named_by_the_kernel(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, grpc.aio.insecure_channel(f"unix:{made.unix}") as channel:
            assert await call(channel) == f"- {os.getpid()} {os.getuid()}"
            (connection,) = made.front.connections()
            assert connection.local == made.unix

    async def test_the_socket_has_its_mode_and_replaces_a_stale_one(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made:
            await made.front.serve_unix(made.unix, mode=0o600)
            assert os.stat(made.unix).st_mode & 0o777 == 0o600
            async with grpc.aio.insecure_channel(f"unix:{made.unix}") as channel:
                assert await call(channel)
        assert not os.path.exists(made.unix)

    async def test_the_inner_socket_alone_is_refused(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, grpc.aio.insecure_channel(made.front.inner_target) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="through the front only") as refused:
                await call(channel)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED

    def test_an_open_directory_is_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        with pytest.raises(ValueError, match="0700"):
            Front(tmp_path / "s")

    async def test_a_dead_caller_is_dropped_although_its_child_holds_the_socket(self, tmp_path: Path) -> None:
        script = (
            "import os,socket,sys,time\n"
            "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.send(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n')\n"
            "child=os.fork()\n"
            "if child: print(child, flush=True)\n"
            "sys.stdin.read()\n"
        )
        async with world(tmp_path) as made:
            parent = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, made.unix, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert parent.stdout is not None
            child = int(await parent.stdout.readline())
            await until(lambda: len(made.front.connections()) == 1, "it is in")
            try:
                os.kill(parent.pid, 9)
                await until(lambda: not made.front.connections(), "it is dropped")
                os.kill(child, 0)  # which still lives
            finally:
                os.kill(child, 9)
            await parent.wait()

    async def test_much_data_passes_both_ways(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, grpc.aio.insecure_channel(f"unix:{made.unix}") as channel:
            stream = channel.stream_stream("/test.Test/Echo")(timeout=50)
            sent = random.Random(1).randbytes(1_000_000)
            for _ in range(20):
                await stream.write(sent)
                assert await stream.read() == sent
            stream.cancel()


class TestOpenStreams:
    async def test_what_admit_would_not_let_in_any_more_ends_open_streams_of_that_method(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            stream = channel.stream_stream("/test.Test/Echo")(timeout=60)
            waiting = channel.stream_unary("/test.Test/Wait")(timeout=60)
            for open_call in (stream, waiting):
                await open_call.write(b"a")
            assert await stream.read() == b"a"
            made.closed.add("/test.Test/Echo")
            with pytest.raises(grpc.aio.AioRpcError, match="Echo is closed") as refused:
                await stream.read()
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            await waiting.done_writing()
            assert await waiting == b"done"

    async def test_a_ban_ends_open_streams_with_a_reason(self, tmp_path: Path) -> None:
        async with (
            world(tmp_path) as made,
            tls_channel(made.port, AUTHORITY.svid("web")) as banned,
            tls_channel(made.port, AUTHORITY.svid("other")) as fine,
        ):
            stream = banned.stream_stream("/test.Test/Echo")(timeout=60)
            waiting = banned.stream_unary("/test.Test/Wait")(timeout=60)
            await waiting.write(b"x")
            going_on = fine.stream_stream("/test.Test/Echo")(timeout=60)
            for each in (stream, going_on):
                await each.write(b"x")
                assert await each.read() == b"x"
            made.bans.add("web")
            for ended in (stream.read(), waiting):
                with pytest.raises(grpc.aio.AioRpcError, match="banned") as refused:
                    await ended
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError, match="banned"):
                await call(banned)
            await going_on.write(b"y")
            assert await going_on.read() == b"y"
            going_on.cancel()
            assert "service/web" in made.refusals[0][0]

    async def test_closing_a_connection_ends_its_calls_at_once(self, tmp_path: Path) -> None:
        async with world(tmp_path) as made, tls_channel(made.port, AUTHORITY.svid("web")) as channel:
            stream = channel.stream_stream("/test.Test/Echo")(timeout=60)
            await stream.write(b"x")
            await stream.read()
            for connection in made.front.connections():
                made.front.close(connection)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stream.read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            # By a new handshake, on a new channel: the old one may not have heard yet that its socket is gone.
            async with tls_channel(made.port, AUTHORITY.svid("web")) as again:
                assert "web" in await call(again)

    async def test_an_expired_peer_ends(self, tmp_path: Path) -> None:
        moment = utc_now()
        async with world(tmp_path) as made:
            verifier = PeerVerifier(lambda: {DOMAIN: AUTHORITY.bundle}, lambda: moment)
            made.interceptor._check._verifier = verifier
            async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
                stream = channel.stream_stream("/test.Test/Echo")(timeout=60)
                await stream.write(b"x")
                await stream.read()
                moment += timedelta(hours=2)
                with pytest.raises(grpc.aio.AioRpcError, match="expired"):
                    await stream.read()


def server_certificate(port: int) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        client_context().wrap_socket(plain, server_hostname=SERVER_NAME) as sock,
    ):
        return sock.getpeercert(binary_form=True)


def gets_a_ticket(port: int) -> bool:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        client_context().wrap_socket(plain, server_hostname=SERVER_NAME) as sock,
    ):
        sock.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        sock.recv(1)  # tickets come before the first data
        return sock.session is not None and sock.session.has_ticket


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
async def test_a_connection_that_came_as_the_front_closed_is_closed_with_it(tmp_path: Path, turns: int) -> None:
    context = server_context(SERVER.chain_pem(), SERVER.key_pem(), AUTHORITY.bundle.pem())
    for number in range(20):
        front = Front(tmp_path / f"{number}.sock")
        port = await front.serve_tls("127.0.0.1", 0, lambda: context)
        with socket.create_connection(("127.0.0.1", port)) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await front.aclose()
            client.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    gc.collect()  # what is still open would be complained of here
