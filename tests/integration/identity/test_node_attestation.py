"""SPIRE's suite `node-attestation`: attest, renew, ban, by each attestor; and what was mended there in 1.14.2."""

import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.agents.proof.port import ProofMissing
from meshwarden.agents.proof.vault import VaultProof
from meshwarden.agents.proof.vault_http import VaultHttp
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import node_service_pb2 as v1

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))

from openbao_server import serve

POLICY = Path(__file__).parents[3] / "deploy" / "vault" / "attestor.hcl"


async def test_by_the_possession_of_a_certificate(mesh: Any, refusal: Any) -> None:
    files = mesh.machines.issue("node-a")
    svid = await mesh.attest_by_certificate(*files)
    assert svid.spiffe_id.node == "node-a"
    renewed = await mesh.renew(svid)
    await mesh.admin.BanNode(admin.BanNodeRequest(node="node-a", reason="stolen"))
    for call in (mesh.renew(renewed), mesh.attest_by_certificate(*files)):
        code, message, word = await refusal(call)
        assert (code, word) == (grpc.StatusCode.PERMISSION_DENIED, "banned")
        assert message.endswith(": stolen")
    (listed,) = (await mesh.admin.ListNodes(admin.ListNodesRequest())).nodes
    assert (listed.node, listed.ban.reason, listed.attestor) == ("node-a", "stolen", "")
    # Somebody else's key for the same certificate is nobody's.
    _, other = mesh.machines.issue("node-b")
    code, message, _ = await refusal(mesh.attest_by_certificate(mesh.directory / "node-a.pem", other))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "isn't signed with the certificate's key" in message


async def test_by_a_login_at_vault(start: Any, refusal: Any, tmp_path: Path) -> None:
    with serve(tmp_path) as bao:
        bao.admin.sys.enable_auth_method("approle")
        bao.admin.sys.create_or_update_policy("attestor", POLICY.read_text())
        for role, policy in (("node-a", "meshwarden-node"), ("ci", "other")):
            bao.admin.auth.approle.create_or_update_approle(role, token_policies=[policy], token_ttl="300s")
        token = bao.admin.auth.token.create(policies=["attestor"], no_default_policy=True, ttl="1h", period="1h")
        token_file = tmp_path / "token"
        token_file.touch(0o600)
        token_file.write_text(token["auth"]["client_token"])
        vault = {"address": bao.address, "token": f"file:{token_file}"}
        mesh = await start(vault=vault, attestor=({"kind": "vault"},))

        def login(role: str, **more: Any) -> VaultProof:
            secret = tmp_path / f"{role}.secret"
            secret.touch(0o600)
            secret.write_text(bao.admin.auth.approle.generate_secret_id(role)["data"]["secret_id"])
            role_id = bao.admin.auth.approle.read_role_id(role)["data"]["role_id"]
            http = VaultHttp(bao.address, None, None)
            return VaultProof(http, role_id=role_id, secret_id_file=secret, **more)

        proof = login("node-a")
        request = await proof.request()
        svid = await mesh.attest(request)
        assert svid.spiffe_id.node == "node-a"
        assert request.vault.token not in (mesh.directory / "cp" / "audit.jsonl").read_text()
        # The token is looked up, not used up: what a lost reply costs is another try.
        assert (await mesh.attest(await proof.request())).spiffe_id == svid.spiffe_id
        await proof.end()
        assert "unknown or has ended" in (await refusal(mesh.attest(request)))[1]
        assert "has no policy" in (await refusal(mesh.attest(await login("ci").request())))[1]
        # Who holds a token may make others, with any metadata; none of them is a node's.
        policies = ["meshwarden-node"]
        forged = bao.admin.auth.token.create(policies=policies, meta={"role_name": "node-b"})["auth"]["client_token"]
        forged_request = v1.AttestRequest(vault=v1.VaultProof(token=forged))
        assert "nodes log in at auth/approle/login" in (await refusal(mesh.attest(forged_request)))[1]
        await _wrapped(bao, mesh, refusal, tmp_path)


async def _wrapped(bao: Any, mesh: Any, refusal: Any, tmp_path: Path) -> None:
    """A login that was wrapped for the node is unwrapped by the node alone, and once."""
    role_id = bao.admin.auth.approle.read_role_id("node-a")["data"]["role_id"]
    secret_id = bao.admin.auth.approle.generate_secret_id("node-a")["data"]["secret_id"]
    wrapped = bao.admin.write_data(
        "auth/approle/login", data={"role_id": role_id, "secret_id": secret_id}, wrap_ttl="60s"
    )
    file = tmp_path / "wrapped"
    file.touch(0o600)
    file.write_text(wrapped["wrap_info"]["token"])
    # Shown as it is, it is no login.
    as_it_is = VaultProof(None, token_file=file)
    assert "it has no entity" in (await refusal(mesh.attest(await as_it_is.request())))[1]
    proof = VaultProof(VaultHttp(bao.address, None, None), wrapped_token_file=file)
    assert (await mesh.attest(await proof.request())).spiffe_id.node == "node-a"
    again = VaultProof(VaultHttp(bao.address, None, None), wrapped_token_file=file)
    with pytest.raises(ProofMissing, match="sys/wrapping/unwrap"):
        await again.request()


async def test_vault_is_asked_where_it_is_configured_whatever_a_request_holds(mesh: Any, refusal: Any) -> None:
    """SPIRE 1.14.2: an attestor could be made to call an address of the caller's choice."""
    fields = {field.name for field in v1.VaultProof.DESCRIPTOR.fields}
    assert fields == {"token"}
    for token in ("http://127.0.0.1:1/", "s.abc/../../sys/seal", "s.abcdefgh\r\nHost: x", "s" * 2000, "short"):
        code, message, _ = await refusal(mesh.attest(v1.AttestRequest(vault=v1.VaultProof(token=token))))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "vault.token" in message
        assert token not in message
