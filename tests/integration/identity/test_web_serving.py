"""What the REST listener shows to whom: the control plane's own certificate, and one for browsers."""

import asyncio
import json
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rest_client import DEADLINE_S

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.identity import web_serving
from meshwarden.v1.session_service_pb2 import CreateSessionCodeRequest, SessionCode
from meshwarden.v1.session_service_pb2_grpc import SessionServiceStub

MESH_NAME = "controlplane.mesh.test"


def files_of(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate of the web's PKI, which here signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc_now() - web_serving.LIFE)
        .not_valid_after(utc_now() + web_serving.LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .sign(key, hashes.SHA256())
    )
    certificate, key_file = directory / "web.pem", directory / "web.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key_file


async def shown(mesh: Any, name: str | None, ca_file: Path | None = None) -> x509.Certificate:
    """The certificate that who says this name is shown; it must be good for it."""
    state = mesh.directory / mesh.name
    port = int(json.loads((state / "server.json").read_text())["rest_url"].rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(ca_file or state / "ca.pem"))
    context.check_hostname = name is not None
    context.set_alpn_protocols(["http/1.1"])
    async with asyncio.timeout(DEADLINE_S):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "")
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(found)


def names_in(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(extension.get_values_for_type(x509.DNSName))


async def test_browsers_find_it_by_a_name_that_they_know(start: Any) -> None:
    mesh = await start(rest={"listen": "127.0.0.1:0", "names": ["mesh.example"]})
    own = await shown(mesh, MESH_NAME)
    assert names_in(own) == {MESH_NAME, f"eu.{MESH_NAME}"}
    for name in ("localhost", "mesh.example", "LOCALHOST"):
        assert names_in(await shown(mesh, name)) == {MESH_NAME, f"eu.{MESH_NAME}", "localhost", "mesh.example"}
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown(mesh, "other.example")
    events = [json.loads(line) for line in (mesh.directory / mesh.name / "audit.jsonl").read_text().splitlines()]
    assert [one for one in events if one["event"] == "controlplane.issue_web"]


async def told(mesh: Any) -> SessionCode:
    """What `meshwarden console` is told."""
    stub = SessionServiceStub(mesh.channels[-1])
    code: SessionCode = await stub.CreateSessionCode(CreateSessionCodeRequest(), timeout=DEADLINE_S)
    return code


async def test_a_browser_may_trust_it_for_its_names_alone(start: Any, short_dir: Path) -> None:
    mesh = await start(rest={"listen": "127.0.0.1:0", "names": ["mesh.example"]})
    pem = (await told(mesh)).browser_root
    (short_dir / "browser.pem").write_text(pem)
    for name in ("localhost", "mesh.example"):
        assert name in names_in(await shown(mesh, name, short_dir / "browser.pem"))
    limits = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    permitted = [str(one.value) for one in limits.value.permitted_subtrees or ()]
    assert permitted == [MESH_NAME, f"eu.{MESH_NAME}", "mesh.example", "localhost", "127.0.0.0/8", "::1/128"]


async def test_with_a_certificate_of_its_own_there_is_no_root_to_trust(start: Any, short_dir: Path) -> None:
    certificate, key = files_of(short_dir, "mesh.example")
    mesh = await start(rest={"listen": "127.0.0.1:0", "certificate": certificate, "key": key})
    code = await told(mesh)
    assert (code.mesh_certificate, code.browser_root) == (False, "")


async def test_files_that_cant_be_read_are_named(tmp_path: Path) -> None:
    parts: Any = SimpleNamespace()
    made = web_serving.WebServing(
        parts,
        parts,
        "mesh.test",
        "eu",
        audit=parts,
        clock=utc_now,
        names=(),
        files=(tmp_path / "x.pem", tmp_path / "x"),
    )
    with pytest.raises(web_serving.WebCertificateUnusable, match=r"\[rest\] .*x\.pem: No such file"):
        await made.start()


async def test_changed_files_are_shown(start: Any, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_serving, "LOOK_S", 0.02)
    certificate, key = files_of(short_dir, "mesh.example")
    mesh = await start(rest={"listen": "127.0.0.1:0", "certificate": certificate, "key": key})
    first = await shown(mesh, "mesh.example", certificate)
    assert names_in(await shown(mesh, MESH_NAME)) == {MESH_NAME, f"eu.{MESH_NAME}"}, "programs are shown the mesh's"
    certificate.write_text("no certificate")  # which ends nothing
    await asyncio.sleep(0.1)
    files_of(short_dir, "mesh.example")
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if await shown(mesh, "mesh.example", certificate) != first:
                    break
            except ssl.SSLCertVerificationError:  # the one before
                pass
            await asyncio.sleep(0.02)


async def test_where_nobody_signs_names_it_shows_its_own(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role of Vault may allow other names alone; the API is served all the same."""
    sign = MemoryAuthority.sign

    async def choosy(self: Any, template: Any, *rest: Any) -> Any:
        if "localhost" in template.dns_names:
            raise AuthorityError("localhost is not allowed by this role")
        return await sign(self, template, *rest)

    monkeypatch.setattr(MemoryAuthority, "sign", choosy)
    mesh = await start(rest={"listen": "127.0.0.1:0"})
    assert names_in(await shown(mesh, MESH_NAME)) == {MESH_NAME, f"eu.{MESH_NAME}"}
    with pytest.raises(ssl.SSLCertVerificationError):
        await shown(mesh, "localhost")
