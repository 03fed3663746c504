"""Who calls on a real connection: proved anew at each call, whatever is remembered, and whoever had the port before."""

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tests.counted import stats_of

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Deny, DenyList
from meshwarden.certs.issue import LeafTemplate, issue_leaf
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.sdk.config import Config
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.red.count import Counter
from meshwarden.v1.node_service_pb2 import ServerLimits

DEADLINE_S = 60.0
NAME = "orders.mesh.test"
WEB = "spiffe://mesh.test/tenant/acme/service/web"
RESET = struct.pack("ii", 1, 0)


class Relay:
    """Connects whoever comes to a server, one after the other, and each from the same port."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._from = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                with near, socket.socket() as far:
                    far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # leaves the port free at once
                    far.bind(("127.0.0.1", self._from))
                    self._from = far.getsockname()[1]
                    far.connect(("127.0.0.1", self._server_port))
                    back = threading.Thread(target=_pass_on, args=(far, near), daemon=True)
                    back.start()
                    _pass_on(near, far)
                    with contextlib.suppress(OSError):
                        far.shutdown(socket.SHUT_RDWR)
                    back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class World:
    """A server of the SDK behind a relay. TLS takes what either of two authorities has issued."""

    def __init__(self, authority: Any) -> None:
        self.now: datetime = utc_now()
        self.ours, self.others = authority(), authority("other.test")
        identity = SpiffeId.workload("mesh.test", "platform", "orders")
        key = new_key()
        own = X509Svid.of(
            issue_leaf(LeafTemplate(identity, timedelta(hours=1), (NAME,)), key.public_key(), self.ours.key, self.now),
            key,
        )
        bundles = {issuer.bundle.trust_domain: issuer.bundle for issuer in (self.ours, self.others)}
        self.roots = b"".join(bundle.pem() for bundle in bundles.values())
        self.listeners: list[Callable[[Config], None]] = []
        self.link: Any = SimpleNamespace(
            config=Config(identity, bundles, ServerLimits(), 1, Path(), {}, federated=bundles),
            counter=Counter(utc_now),
            listen=self.listeners.append,
            unlisten=self.listeners.remove,
        )
        self.incoming = Incoming(self.link, lambda: self.now)
        self.seen: list[tuple[str, str]] = []
        self.server = grpc.server(ThreadPoolExecutor(4), interceptors=[IncomingInterceptor(self.incoming)])
        made: Any = grpc
        handlers = {
            "Who": made.unary_unary_rpc_method_handler(self.who),
            "Wait": made.unary_stream_rpc_method_handler(self.wait),
        }
        self.server.add_generic_rpc_handlers((made.method_handlers_generic_handler("t.T", handlers),))
        takes = grpc.ssl_server_credentials([(own.key_pem(), own.chain_pem())], self.roots, require_client_auth=True)
        self.relay = Relay(self.server.add_secure_port("127.0.0.1:0", takes))
        self.server.start()

    def who(self, request: bytes, context: Any) -> bytes:
        self.seen.append((context.peer(), str(sdk.peer_identity(context))))
        return b""

    def wait(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"open"
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(DEADLINE_S)

    @contextlib.contextmanager
    def channel(self, tenant: str, issuer: Any = None) -> Iterator[grpc.Channel]:
        svid = (issuer or self.ours).issue(SpiffeId.workload("mesh.test", tenant, "web"))
        self.serial = svid.serial
        shown = grpc.ssl_channel_credentials(self.roots, svid.key_pem(), svid.chain_pem())
        options = [("grpc.ssl_target_name_override", NAME), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{self.relay.port}", shown, options) as channel:
            yield channel

    def say(self, **changes: Any) -> None:
        """The agent says what has changed."""
        self.link.config = replace(self.link.config, **changes)
        for listener in self.listeners:
            listener(self.link.config)

    def close(self) -> None:
        self.server.stop(None).wait()
        self.incoming.close()
        self.relay.close()


@pytest.fixture
def world(authority: Any) -> Iterator[World]:
    made = World(authority)
    yield made
    made.close()


def call(channel: grpc.Channel) -> tuple[str, str]:
    """The status of a call, and what is said of it."""
    try:
        channel.unary_unary("/t.T/Who")(b"", timeout=DEADLINE_S, wait_for_ready=True)
    except grpc.RpcError as error:
        return error.code().name, error.details()  # type: ignore[attr-defined]
    return "OK", ""


def test_whoever_comes_from_a_port_that_another_had_is_another(world: World) -> None:
    for tenant in ("acme", "globex", "acme"):
        with world.channel(tenant) as channel:
            assert call(channel) == call(channel) == ("OK", "")
    assert len({peer for peer, _ in world.seen}) == 1
    tenants = [identity.split("/")[4] for _, identity in world.seen]
    assert tenants == ["acme", "acme", "globex", "globex", "acme", "acme"]


def test_who_shows_the_same_name_by_another_authority_from_the_same_port_is_refused(world: World) -> None:
    with world.channel("acme") as channel:
        assert call(channel) == ("OK", "")
    with world.channel("acme", world.others) as channel:  # TLS lets it in
        for _ in range(2):
            code, details = call(channel)
            assert code == "UNAUTHENTICATED"
            assert "no valid path" in details
    with world.channel("acme") as channel:
        assert call(channel) == ("OK", "")
    assert len({peer for peer, _ in world.seen}) == 1
    counted = {(stat.source, stat.status): stat.count for stat in stats_of(world.link.counter.take())}
    assert counted == {("spiffe://mesh.test/tenant/acme/service/web", "OK"): 2, ("", "UNAUTHENTICATED"): 2}


def expire(world: World) -> None:
    world.now += timedelta(hours=2)


def remove_root(world: World) -> None:
    world.say(federated={"other.test": world.others.bundle})


def deny_identity(world: World) -> None:
    world.say(deny_list=DenyList([Deny(WEB, "", world.now + timedelta(hours=1))]))


def deny_certificate(world: World) -> None:
    world.say(deny_list=DenyList([Deny("", world.serial, world.now + timedelta(hours=1))]))


@pytest.mark.parametrize("end", [expire, remove_root, deny_identity, deny_certificate])
def test_a_connection_outlives_no_certificate(world: World, end: Callable[[World], None]) -> None:
    with world.channel("acme") as channel:
        assert call(channel) == ("OK", "")
        stream = channel.unary_stream("/t.T/Wait")(b"", timeout=DEADLINE_S)
        assert next(stream) == b"open"
        assert world.incoming.sweep() == 0
        end(world)
        assert call(channel)[0] == "UNAUTHENTICATED"
        assert world.incoming.sweep() == 1
        with pytest.raises(grpc.RpcError) as raised:
            next(stream)
    assert raised.value.code() is grpc.StatusCode.CANCELLED  # type: ignore[attr-defined]
    assert len({peer for peer, _ in world.seen}) == 1


def test_who_is_denied_is_refused_on_open_channels_until_the_deny_ends_and_no_other_is(world: World) -> None:
    with world.channel("globex") as others:
        assert call(others) == ("OK", "")
        # The relay takes one connection after the other: the other channel keeps its own.
    with world.channel("acme") as channel:
        for deny in (deny_identity, deny_certificate):
            assert call(channel) == ("OK", "")
            swept = threading.Thread(target=world.incoming.wait_to_sweep, args=(DEADLINE_S,))
            swept.start()
            deny(world)
            swept.join(DEADLINE_S)
            assert not swept.is_alive()  # whoever sweeps is woken
            code, details = call(channel)
            assert (code, "revoked" in details) == ("UNAUTHENTICATED", True)
            world.now += timedelta(minutes=61)
            world.say(federated=dict(world.link.config.federated))
            # The deny has ended by itself, though the agent has said nothing; so has the certificate.
            assert "expired" in call(channel)[1]
            world.now -= timedelta(minutes=61)
            world.say(deny_list=DenyList())
    with world.channel("globex") as others:
        deny_identity(world)
        assert call(others) == ("OK", "")


class Resuming:
    """TLS to a server for whoever connects to a Unix socket; each connection resumes the session of the one before."""

    def __init__(self, directory: Path, port: int, svid: X509Svid, version: ssl.TLSVersion) -> None:
        self.path, self.reused = directory / "resuming.sock", list[bool]()
        self._port, self._session = port, None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE  # the server isn't under test
        self._context.minimum_version = self._context.maximum_version = version
        self._context.set_alpn_protocols(["h2"])
        (directory / "peer.pem").write_bytes(svid.chain_pem() + svid.key_pem())
        self._context.load_cert_chain(directory / "peer.pem")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                plain = socket.create_connection(("127.0.0.1", self._port))
                with near, self._context.wrap_socket(plain, session=self._session) as far:
                    self.reused.append(bool(far.session_reused))
                    self._splice(near, far)

    def _splice(self, near: socket.socket, far: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready = [far] if far.pending() else select.select([near, far], [], [])[0]
                for source, target in ((near, far), (far, near)):
                    if source in ready:
                        if not (data := source.recv(65536)):
                            return
                        target.sendall(data)
                # TLS 1.3 sends its tickets after the handshake, with the first data.
                self._session = far.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_proves_nothing_that_has_ended(
    world: World, tmp_path_factory: pytest.TempPathFactory, version: ssl.TLSVersion
) -> None:
    svid = world.ours.issue(SpiffeId.workload("mesh.test", "acme", "web"))
    # The relay passes on what it gets; TLS ends behind it.
    way = Resuming(tmp_path_factory.mktemp("r"), world.relay.port, svid, version)

    def connect() -> tuple[str, str]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{way.path}", options) as channel:
            return call(channel)

    assert connect() == ("OK", "")
    assert connect() == ("OK", "")
    world.now += timedelta(hours=2)
    code, details = connect()
    assert (code, "expired" in details) == ("UNAUTHENTICATED", True)
    world.now -= timedelta(hours=2)
    for deny in (DenyList([Deny(WEB, "", world.now + timedelta(hours=1))]), DenyList()):
        world.say(deny_list=deny)
        assert connect()[0] == ("UNAUTHENTICATED" if deny else "OK")
    assert way.reused[0] is False
    assert any(way.reused), "the stack resumes by itself: without our check it would have let it in"
    way.close()
