"""What `make fuzz` feeds with bytes: {name: target}. A target returns for whatever it is given, or has found a defect.

What is refused is refused by the error that its reader promises; whatever else is raised is a defect, and so is a
certificate, a token or a name that is taken and must not be.
"""

import asyncio
import contextlib
import functools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.certs.bundle_document import TrustBundle, format_document, parse_document
from meshwarden.certs.csr import InvalidCsr, make_csr, parse_csr
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import InvalidJwtSvid, JwtTemplate, sign_jwt_svid, validate
from meshwarden.certs.possession import NotPossessed, parse_chain
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import PeerRefused, verify_chain
from meshwarden.controlplane.backup import BackupError, back_up, restore
from meshwarden.controlplane.identity.join_token import digest
from meshwarden.controlplane.resources.validate import rule_faults
from meshwarden.controlplane.store import port
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import (
    admin_service_pb2,
    audit_service_pb2,
    node_service_pb2,
    operator_service_pb2,
    quota_service_pb2,
    region_service_pb2,
    report_pb2,
    resource_service_pb2,
    workload_service_pb2,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
WEB = SpiffeId.workload("a.test", "acme", "web")
GRAMMAR = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._-]+)+")
FILES = (
    admin_service_pb2,
    audit_service_pb2,
    node_service_pb2,
    operator_service_pb2,
    quota_service_pb2,
    region_service_pb2,
    report_pb2,
    resource_service_pb2,
    workload_service_pb2,
)


@dataclass(frozen=True)
class Target:
    """What is fed, and what to begin with."""

    feed: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


@functools.cache
def issuer() -> IssuerKey:
    key = new_key()
    return IssuerKey(key, (self_signed_root("a.test", key, NOW),))


@functools.cache
def leaf() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    template = LeafTemplate(WEB, timedelta(hours=1))
    return issue_leaf(template, new_key().public_key(), issuer(), NOW)[0].public_bytes(Encoding.DER)


@functools.cache
def bundles() -> dict[str, Bundle]:
    return {"a.test": Bundle.of("a.test", [issuer().root])}


@functools.cache
def jwt_bundles() -> dict[str, JwtBundle]:
    return {"a.test": JwtBundle.of("a.test", [("k", issuer().key.public_key())])}


@functools.cache
def token() -> str:
    return sign_jwt_svid(JwtTemplate(WEB, ("orders",)), issuer().key, "k", NOW).token  # type: ignore[arg-type]


def csr(data: bytes) -> None:
    with contextlib.suppress(InvalidCsr):
        parse_csr(data)


def certificate(data: bytes) -> None:
    """A leaf alone, as a peer shows it, and as a machine does that has one already."""
    with contextlib.suppress(PeerRefused):
        assert verify_chain([data], bundles(), NOW).spiffe_id == WEB
        assert data == leaf(), "a certificate that was never issued"
    with contextlib.suppress(NotPossessed):
        parse_chain([data])


def spiffe_id(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        parsed = SpiffeId.parse(text)
    except InvalidSpiffeId:
        assert GRAMMAR.fullmatch(text) is None or len(text) > 2048
    else:
        assert GRAMMAR.fullmatch(text)
        assert str(parsed) == text


def jwt(data: bytes) -> None:
    text = data.decode("latin-1")
    with contextlib.suppress(InvalidJwtSvid):
        validate(text, "orders", jwt_bundles(), NOW)
        assert text == token(), "a token that was never signed"


def bundle_document(data: bytes) -> None:
    """SPIFFE's JSON, which is a JWKS as well."""
    with contextlib.suppress(InvalidBundle):
        parse_document("a.test", data)


def bundle_pem(data: bytes) -> None:
    with contextlib.suppress(InvalidBundle):
        Bundle.parse_pem("a.test", data)


def join_token(data: bytes) -> None:
    """A token as the file of an agent has it, and as the request brings it."""
    with contextlib.suppress(DecodeError):
        request = node_service_pb2.AttestRequest.FromString(data)
        rule_faults(request)
        assert re.fullmatch("[0-9a-f]{64}", digest(request.join_token))


@functools.cache
def requests() -> list[Any]:
    """Classes of all requests."""
    found = {
        method.input_type.full_name: GetMessageClass(method.input_type)
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    return [found[name] for name in sorted(found)]


def request(data: bytes) -> None:
    """The first byte says which, the rest is the message."""
    kind = requests()[data[0] % len(requests())] if data else requests()[0]
    with contextlib.suppress(DecodeError):
        rule_faults(kind.FromString(data[1:]), len(data) - 1)


class Kept:
    """A store that lasts as long as the process."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mw-fuzz-"))
        self.loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        opening = self._stack.enter_async_context(open_store(self.directory / "state" / "store.sqlite"))
        self.store: Any = self.loop.run_until_complete(opening)
        put = port.Put("/a", b"x")
        self.loop.run_until_complete(self.store.commit([put]))
        back_up(self.directory / "state", self.directory / "backup", NOW)

    async def first(self, after: int) -> object:
        async with contextlib.aclosing(self.store.watch("/", after=after)) as batches:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    return await anext(batches)
        return None


kept = functools.cache(Kept)


def cursor(data: bytes) -> None:
    """Where a watch goes on from."""
    with contextlib.suppress(DecodeError, port.Compacted, port.Future):
        found = resource_service_pb2.Cursor.FromString(data)
        if not rule_faults(found):
            kept().loop.run_until_complete(kept().first(found.revision))


def backup(data: bytes) -> None:
    """A file that somebody says is a backup."""
    with tempfile.TemporaryDirectory(prefix="mw-fuzz-") as directory:
        file = Path(directory) / "backup"
        file.write_bytes(data)
        with contextlib.suppress(BackupError):
            restore(file, Path(directory) / "state")
        assert not (Path(directory) / "state").exists() or (Path(directory) / "state" / "store.sqlite").exists()
        assert {path.name for path in Path(directory).iterdir()} <= {"backup", "state"}


def _pem() -> bytes:
    return bundles()["a.test"].pem()


def _document() -> bytes:
    return format_document(TrustBundle("a.test", bundles()["a.test"], jwt_bundles()["a.test"]))


def _requests() -> list[bytes]:
    filled = [
        node_service_pb2.AttestRequest(join_token="a" * 32, csr=b"x"),
        resource_service_pb2.WatchRequest(kinds=["Service"], tenant="acme"),
    ]
    numbers = {kind.DESCRIPTOR.full_name: number for number, kind in enumerate(requests())}
    return [bytes([numbers[each.DESCRIPTOR.full_name]]) + each.SerializeToString() for each in filled]


def _cursors() -> list[bytes]:
    revisions = (0, 1, 1 << 63)
    return [resource_service_pb2.Cursor(incarnation="a", revision=at).SerializeToString() for at in revisions]


TARGETS = {
    "csr": Target(csr, lambda: [make_csr(new_key())]),
    "certificate": Target(certificate, lambda: [leaf()]),
    "spiffe_id": Target(spiffe_id, lambda: [str(WEB).encode()]),
    "jwt": Target(jwt, lambda: [token().encode()]),
    "bundle_document": Target(bundle_document, lambda: [_document(), json.dumps({"keys": []}).encode()]),
    "bundle_pem": Target(bundle_pem, lambda: [_pem()]),
    "join_token": Target(join_token, lambda: [each[1:] for each in _requests()[:1]]),
    "cursor": Target(cursor, _cursors),
    "request": Target(request, _requests),
    "backup": Target(backup, lambda: [(kept().directory / "backup").read_bytes()]),
}


def again(path: Path) -> None:
    """Feeds a target with what it has failed at; the file's name begins with the target's."""
    names = [name for name in TARGETS if path.name.startswith(f"{name}-")]
    if not names:
        sys.exit(f"{path}: its name has to begin with one of {', '.join(TARGETS)} and '-'")
    TARGETS[max(names, key=len)].feed(path.read_bytes())
