"""mtls-grpc, mtls-envoy, plaintext-refused and foreign-ca-refused: who gets a connection at all."""

import asyncio
import ssl
import tempfile
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.local.check.call import Probes, grpc_calls, http_calls, only
from meshwarden.controlplane.local.check.mesh import Mesh, tls_client
from meshwarden.controlplane.local.check.result import CheckFailed, require

# RFC 9113 §3.4, with an empty SETTINGS frame: what any HTTP/2 server answers.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HTTP1_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
TLS_ALERT = 0x15
ANSWER_S = 5.0
CALLS = 50


async def mtls_grpc(mesh: Mesh, probes: Probes) -> str:
    """Both tenants call orders over proxyless gRPC, and the server sees who they are."""
    for probe, tenant in ((probes.acme, "acme"), (probes.globex, "globex")):
        answer = await grpc_calls(probe, CALLS)
        only(answer, "OK", f"{tenant} to orders")
        require(set(answer["tenants"]) == {tenant}, f"the server took {tenant} for {answer['tenants']}")
    return f"{CALLS} calls each of acme and globex to xds:///orders, all OK, tenants seen by the server"


async def mtls_envoy(mesh: Mesh, probes: Probes) -> str:
    """Both tenants call billing through two Envoys, in plain HTTP on both ends."""
    for probe, tenant in ((probes.acme, "acme"), (probes.globex, "globex")):
        answer = await http_calls(probe, CALLS)
        only(answer, "200", f"{tenant} to billing")
        require(set(answer["tenants"]) == {tenant}, f"the server took {tenant} for {answer['tenants']}")
    return f"{CALLS} calls each of acme and globex to billing.platform, all 200, tenants seen by the server"


async def _doors(mesh: Mesh) -> list[tuple[str, int]]:
    """Where workloads take the mesh's calls."""
    specs = [*await mesh.endpoints("platform", "orders"), *await mesh.endpoints("platform", "billing")]
    require(len(specs) >= 2, "there are no endpoints to try")
    return [(spec.address, spec.port) for spec in specs]


async def _answer(host: str, port: int, request: bytes, context: ssl.SSLContext | None) -> bytes:
    """What comes back; nothing if the connection is closed, or nothing is said in time.

    Raises:
        CheckFailed: nobody listens there, which refuses nothing.
    """
    try:
        _, probe = await asyncio.open_connection(host, port)
        probe.close()
    except OSError as error:
        raise CheckFailed(f"{host}:{port}: nobody listens: {error}") from None
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(request)
                await writer.drain()
                return await reader.read(64)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""


async def plaintext_refused(mesh: Mesh, probes: Probes) -> str:
    """No endpoint, nor the control plane, answers without TLS."""
    address, _, port = str(mesh.up["control_plane"]["address"]).rpartition(":")
    doors = [*await _doors(mesh), (address, int(port))]
    for host, number in doors:
        for request in (HTTP2_PREFACE, HTTP1_REQUEST):
            answer = await _answer(host, number, request, None)
            if answer and answer[0] != TLS_ALERT:
                raise CheckFailed(f"{host}:{number} answered in the clear: {answer[:32]!r}")
    return f"{len(doors)} listeners answer neither HTTP/2 nor HTTP/1.1 in the clear"


async def foreign_ca_refused(mesh: Mesh, probes: Probes) -> str:
    """A certificate that says the right things but is signed by a stranger opens no door; nor does none."""
    with tempfile.TemporaryDirectory() as scratch:
        forged = _forged_client(mesh, Path(scratch))
    bare = tls_client(mesh.roots_pem)
    known = tls_client(mesh.roots_pem)
    known.load_cert_chain(mesh.up["admin"]["cert_file"], mesh.up["admin"]["key_file"])
    doors = await _doors(mesh)
    for host, port in doors:
        # Else it would be no wonder that the others are not answered.
        require(bool(await _answer(host, port, HTTP2_PREFACE, known)), f"{host}:{port} answers nobody")
        for what, context in (("a foreign certificate", forged), ("no certificate", bare)):
            answer = await _answer(host, port, HTTP2_PREFACE, context)
            require(not answer, f"{host}:{port} answered a client with {what}")
    address, _, number = str(mesh.up["control_plane"]["address"]).rpartition(":")
    require(bool(await _answer(address, int(number), HTTP2_PREFACE, known)), "the control plane answers nobody")
    require(
        not await _answer(address, int(number), HTTP2_PREFACE, forged), "the control plane answered a forged operator"
    )
    return f"{len(doors)} endpoints and the control plane refuse a foreign CA; the endpoints also no certificate"


def _forged_client(mesh: Mesh, scratch: Path) -> ssl.SSLContext:
    """A client with acme/web's SPIFFE ID under a root of our own making."""
    now, root_key, key = utc_now(), new_key(), new_key()
    root = self_signed_root(mesh.trust_domain, root_key, now)
    template = LeafTemplate(SpiffeId.workload(mesh.trust_domain, "acme", "web"), timedelta(minutes=10))
    chain = issue_leaf(template, key.public_key(), IssuerKey(root_key, (root,)), now)
    svid = X509Svid.of(chain, key)
    (scratch / "tls.crt").write_bytes(svid.chain_pem() + root.public_bytes(Encoding.PEM))
    (scratch / "tls.key").write_bytes(svid.key_pem())
    context = tls_client(mesh.roots_pem)
    context.load_cert_chain(scratch / "tls.crt", scratch / "tls.key")
    return context
