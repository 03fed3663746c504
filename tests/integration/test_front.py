"""The front with a real grpc.aio server behind it and real, and hostile, clients before it."""

import asyncio
import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier, VerifiedPeer
from meshwarden.sdk.front import Front, FrontLimits
from meshwarden.sdk.peer import PeerInterceptor, Refused, current, current_connection
from meshwarden.sdk.tls import READ_BYTES, server_context

DOMAIN = "mesh.test"
SERVER_NAME = "controlplane.mesh.test"


class Authority:
    """A trust domain's root."""

    def __init__(self, domain: str = DOMAIN) -> None:
        self.key = new_key()
        self.domain = domain
        self.root = self_signed_root(domain, self.key, utc_now() - timedelta(days=1))
        self.bundle = Bundle.of(domain, [self.root])

    def svid(self, service: str, dns: tuple[str, ...] = (), at: datetime | None = None) -> X509Svid:
        key = new_key()
        template = LeafTemplate(SpiffeId.workload(self.domain, "acme", service), timedelta(hours=1), dns)
        chain = issue_leaf(template, key.public_key(), IssuerKey(self.key, (self.root,)), at or utc_now())
        return X509Svid.of(chain, key)


AUTHORITY = Authority()
SERVER = AUTHORITY.svid("server", (SERVER_NAME,))


@dataclass
class World:
    """A server behind a front, and what the test may turn."""

    front: Front
    directory: Path
    interceptor: PeerInterceptor
    bans: set[str] = field(default_factory=set)
    refusals: list[tuple[str, str, str]] = field(default_factory=list)
    context: ssl.SSLContext = field(
        default_factory=lambda: server_context(SERVER.chain_pem(), SERVER.key_pem(), AUTHORITY.bundle.pem())
    )
    port: int = 0

    @property
    def unix(self) -> str:
        return str(self.directory / "front.sock")


async def who(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
    peer, connection = current(), current_connection()
    assert connection is not None
    return f"{peer.spiffe_id if peer else '-'} {connection.pid} {connection.uid}".encode()


async def echo(requests, context: grpc.aio.ServicerContext):
    async for request in requests:
        yield request


async def wait(requests, context: grpc.aio.ServicerContext) -> bytes:
    async for _ in requests:
        pass
    return b"done"


@asynccontextmanager
async def world(directory: Path, limits: FrontLimits | None = None) -> AsyncIterator[World]:
    inner = directory / "inner"
    inner.mkdir(mode=0o700)
    refusals: list[tuple[str, str, str]] = []
    front = Front(inner / "grpc.sock", limits, lambda remote, reason: refusals.append((remote, "TLS", reason)))

    def admit(peer: VerifiedPeer | None, method: str) -> None:
        if method == "/test.Test/Secret" and (peer is None or peer.spiffe_id.service != "web"):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Secret is for web")

    made = World(front, directory, None, refusals=refusals)
    verifier = PeerVerifier(
        lambda: {DOMAIN: AUTHORITY.bundle},
        utc_now,
        denied=lambda peer: "banned" if peer.spiffe_id.service in made.bans else None,
    )
    made.interceptor = PeerInterceptor(front, verifier, admit, lambda *refusal: made.refusals.append(refusal))
    server = grpc.aio.server(interceptors=[made.interceptor])
    handlers = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Secret": grpc.unary_unary_rpc_method_handler(who),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Wait": grpc.stream_unary_rpc_method_handler(wait),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    server.add_insecure_port(front.inner_target)
    await server.start()
    try:
        async with front:
            made.port = await front.serve_tls("127.0.0.1", 0, lambda: made.context)
            await front.serve_unix(made.unix)
            yield made
    finally:
        await server.stop(None)
        # Calls that are still ending would wake a loop that is closed by then: grpc.aio has one queue for all loops.
        await server.wait_for_termination()


def tls_channel(port: int, svid: X509Svid | None) -> grpc.aio.Channel:
    chain, key = (svid.chain_pem(), svid.key_pem()) if svid else (None, None)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.bundle.pem(), key, chain)
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)


async def call(channel: grpc.aio.Channel, method: str = "Who") -> str:
    return (await channel.unary_unary(f"/test.Test/{method}")(b"", timeout=10)).decode()


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.01)
    assert condition(), what


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


class TestHostile:
    @pytest.mark.parametrize(
        "garbage", [b"\0" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"a" * 70000]
    )
    async def test_garbage_does_no_harm(self, tmp_path: Path, garbage: bytes) -> None:
        async with world(tmp_path) as made:
            for open_connection in (
                asyncio.open_connection("127.0.0.1", made.port),
                asyncio.open_unix_connection(made.unix),
            ):
                reader, writer = await open_connection
                writer.write(garbage)
                try:
                    async with asyncio.timeout(10):
                        while await reader.read(65536):
                            pass
                except ConnectionError:
                    pass
                writer.close()
            async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
                assert "web" in await call(channel)

    async def test_half_open_handshakes_keep_nobody_out(self, tmp_path: Path) -> None:
        async with world(tmp_path, FrontLimits(handshakes=64, handshake_s=30)) as made:
            opened = []
            for _ in range(1000):
                sock = socket.socket()
                sock.setblocking(False)
                opened.append(sock)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", made.port))
            async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
                assert "web" in await call(channel)
            assert len(os.listdir("/proc/self/fd")) < 1000 + 64 + 200
            for sock in opened:
                sock.close()

    async def test_who_says_nothing_is_let_go(self, tmp_path: Path) -> None:
        async with world(tmp_path, FrontLimits(handshake_s=0.2, first_byte_s=0.2)) as made:
            for open_connection in (
                asyncio.open_connection("127.0.0.1", made.port),
                asyncio.open_unix_connection(made.unix),
                asyncio.open_connection("127.0.0.1", made.port, ssl=client_context(), server_hostname=SERVER_NAME),
            ):
                reader, writer = await open_connection
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
                writer.close()
            await until(lambda: not made.front.connections(), "all are gone")

    async def test_who_shows_no_certificate_keeps_nobody_out(self, tmp_path: Path) -> None:
        async with world(tmp_path, FrontLimits(connections=64, anonymous=8)) as made:
            held = [await raw_tls(made, None) for _ in range(100)]
            assert len(made.front.connections()) == 8
            async with tls_channel(made.port, AUTHORITY.svid("web")) as known, tls_channel(made.port, None) as unknown:
                assert "web" in await call(known)
                assert (await call(unknown)).startswith("- ")
            for writer in held:
                writer.close()

    async def test_one_identity_keeps_no_other_out(self, tmp_path: Path) -> None:
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

    async def test_connections_are_bounded(self, tmp_path: Path) -> None:
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

    async def test_running_out_of_descriptors_is_survived(self, tmp_path: Path) -> None:
        script = Path(__file__).with_name("front_exhaustion.py")
        command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["served", "exhausted", "served-on", "recovered"]

    async def test_connections_leave_nothing_behind(self, tmp_path: Path) -> None:
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
    async def test_a_ban_ends_open_streams_with_a_reason(self, tmp_path: Path) -> None:
        async with (
            world(tmp_path) as made,
            tls_channel(made.port, AUTHORITY.svid("web")) as banned,
            tls_channel(made.port, AUTHORITY.svid("other")) as fine,
        ):
            stream = banned.stream_stream("/test.Test/Echo")(timeout=30)
            waiting = banned.stream_unary("/test.Test/Wait")(timeout=30)
            await waiting.write(b"x")
            going_on = fine.stream_stream("/test.Test/Echo")(timeout=30)
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
            stream = channel.stream_stream("/test.Test/Echo")(timeout=30)
            await stream.write(b"x")
            await stream.read()
            for connection in made.front.connections():
                made.front.close(connection)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stream.read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "web" in await call(channel)  # by a new handshake

    async def test_an_expired_peer_ends(self, tmp_path: Path) -> None:
        moment = utc_now()
        async with world(tmp_path) as made:
            verifier = PeerVerifier(lambda: {DOMAIN: AUTHORITY.bundle}, lambda: moment)
            made.interceptor._check._verifier = verifier
            async with tls_channel(made.port, AUTHORITY.svid("web")) as channel:
                stream = channel.stream_stream("/test.Test/Echo")(timeout=30)
                await stream.write(b"x")
                await stream.read()
                moment += timedelta(hours=2)
                with pytest.raises(grpc.aio.AioRpcError, match="expired"):
                    await stream.read()


def client_context(svid: X509Svid | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=AUTHORITY.root.public_bytes(Encoding.PEM).decode())
    context.set_alpn_protocols(["h2"])
    if svid is not None:
        with NamedTemporaryFile() as file:
            file.write(svid.chain_pem() + svid.key_pem())
            file.flush()
            context.load_cert_chain(file.name)
    return context


async def raw_tls(made: World, svid: X509Svid | None) -> asyncio.StreamWriter:
    """A connection that begins HTTP/2 and says no more; it reads, and so learns of its end."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", made.port, ssl=client_context(svid), server_hostname=SERVER_NAME
    )
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    await reader.read(1)  # the server's answer: it is in, or refused
    return writer


def server_certificate(port: int) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        client_context().wrap_socket(plain, server_hostname=SERVER_NAME) as sock,
    ):
        return sock.getpeercert(binary_form=True)


def gets_a_ticket(port: int) -> bool:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        client_context().wrap_socket(plain, server_hostname=SERVER_NAME) as sock,
    ):
        sock.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        sock.recv(1)  # tickets come before the first data
        return sock.session is not None and sock.session.has_ticket
