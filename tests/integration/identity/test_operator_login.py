"""Operators by a login at a real OpenBao: who gets how far, by the command and by hand, and what gets nobody in."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from tests.written import written

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import operator_service_pb2 as v1
from meshwarden.v1.admin_service_pb2 import CreateJoinTokenRequest, GetStatusRequest
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.operator_service_pb2_grpc import OperatorServiceStub
from meshwarden.v1.resource_service_pb2 import ApplyRequest

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))

from openbao_server import serve

POLICY = Path(__file__).parents[3] / "deploy" / "vault" / "attestor.hcl"
TENANT = "kind: Tenant\nmetadata: {tenant: acme, name: acme}\n"
GRANTS = (
    {"policy": "mesh-viewer", "role": "viewer"},
    {"policy": "mesh-admin", "role": "admin"},
    {"policy": "acme-editor", "role": "editor", "tenant": "acme"},
    {"entity": "paula", "role": "editor"},
)
DEADLINE_S = 60


@dataclass
class World:
    """A control plane, and the OpenBao that it asks."""

    mesh: Any
    bao: Any
    directory: Path

    def user(self, name: str, *policies: str) -> None:
        self.bao.admin.auth.userpass.create_or_update_user(name, f"{name} has a password", policies=list(policies))

    def token(self, name: str) -> str:
        """Logs in as a user does."""
        url = f"auth/userpass/login/{name}"
        answer = self.bao.admin.write_data(url, data={"password": f"{name} has a password"})
        return str(answer["auth"]["client_token"])

    async def log_in(self, token: str, tenant: str = "", csr: bytes = b"") -> Any:
        async with self.mesh.anonymous() as channel:
            stub: Any = OperatorServiceStub(channel)
            request = v1.LoginOperatorRequest(vault_token=token, csr=csr or make_csr(new_key()), tenant=tenant)
            return await stub.LoginOperator(request, timeout=DEADLINE_S)

    async def svid(self, token: str, tenant: str = "") -> X509Svid:
        key = new_key()
        answer = await self.log_in(token, tenant, make_csr(key))
        return X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)

    async def status(self, svid: X509Svid) -> Any:
        async with self.mesh.channel(svid) as channel:
            admin: Any = AdminServiceStub(channel)
            return await admin.GetStatus(GetStatusRequest(), timeout=DEADLINE_S)

    async def command(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs `meshwarden`, as a user whose files are below our directory."""
        said = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "XDG_CONFIG_HOME": str(self.directory / "c")}
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "meshwarden.controlplane", *arguments],
            env={**said, "VAULT_ADDR": self.bao.address, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def written(self) -> str:
        """All that the control plane has on disk that a token could be in."""
        return "".join(content.decode("latin-1") for _, content in written(self.mesh.directory / "cp"))


@pytest.fixture
async def world(start: Any, tmp_path: Path) -> AsyncIterator[World]:
    with serve(tmp_path) as bao:
        bao.admin.sys.enable_auth_method("userpass")
        bao.admin.sys.enable_auth_method("userpass", path="other")
        bao.admin.sys.enable_auth_method("approle")
        bao.admin.sys.create_or_update_policy("attestor", POLICY.read_text())
        own = bao.admin.auth.token.create(policies=["attestor"], no_default_policy=True, ttl="1h", period="1h")
        token_file = tmp_path / "own"
        token_file.touch(0o600)
        token_file.write_text(own["auth"]["client_token"])
        mesh = await start(
            vault={"address": bao.address, "token": f"file:{token_file}"},
            operator_login={"mounts": ("userpass", "approle"), "ttl_s": 600, "grants": GRANTS},
        )
        await mesh.resources.Apply(ApplyRequest(resources=[item.resource for item in parse(TENANT, "t.yaml")]))
        yield World(mesh, bao, tmp_path)


async def test_who_gets_how_far_and_who_does_not(world: World, refusal: Any) -> None:
    for name, *policies in (("ann", "mesh-viewer", "mesh-admin"), ("bob", "mesh-viewer"), ("eve", "other")):
        world.user(name, *policies)
    world.user("tom", "acme-editor")
    token = world.token("ann")
    ann, bob = await world.svid(token), await world.svid(world.token("bob"))
    assert str(ann.spiffe_id) == "spiffe://mesh.test/operator/vault-ann"
    assert (ann.not_after - ann.not_before).total_seconds() <= 600 + 60
    for svid, may in ((ann, True), (bob, False)):
        await world.status(svid)
        async with world.mesh.channel(svid) as channel:
            admin: Any = AdminServiceStub(channel)
            call = admin.CreateJoinToken(CreateJoinTokenRequest(node="n"), timeout=DEADLINE_S)
            if may:
                assert (await call).token
            else:
                assert "that takes an admin" in (await refusal(call))[1]
    tom = await world.svid(world.token("tom"), "acme")
    assert str(tom.spiffe_id) == "spiffe://mesh.test/tenant/acme/operator/vault-tom"
    for refused, tenant, reason in (
        (world.token("eve"), "", "nothing makes the token's holder an operator"),
        (world.token("tom"), "", "if you are one of a tenant, say which"),
        (world.token("ann"), "acme", "an operator of tenant acme"),
        (world.token("ann"), "nobody", "there is no tenant"),
        ("s." + "x" * 24, "", "unknown or has ended"),
    ):
        assert reason in (await refusal(world.log_in(refused, tenant)))[1]
    # It is a login, and neither renewed nor anybody else's name.
    async with world.mesh.channel(ann) as channel:
        stub: Any = OperatorServiceStub(channel)
        renewal = stub.RenewOperator(v1.RenewOperatorRequest(csr=make_csr(new_key())), timeout=DEADLINE_S)
        assert "logs in again" in (await refusal(renewal))[1]
        made = v1.CreateOperatorRequest(name="vault-ann", role=v1.ADMIN, csr=make_csr(new_key()))
        assert (await refusal(stub.CreateOperator(made, timeout=DEADLINE_S)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        listed = {one.name: one for one in (await stub.ListOperators(v1.ListOperatorsRequest())).operators}
        assert listed["vault-ann"].until.seconds == int(ann.not_after.timestamp())
        # A login that is removed ends at once.
        await stub.RemoveOperator(v1.RemoveOperatorRequest(name="vault-bob"), timeout=DEADLINE_S)
    assert (await refusal(world.status(bob)))[0] is grpc.StatusCode.PERMISSION_DENIED
    # The token is nowhere; who has logged in, and who was refused, is.
    assert token not in world.written()
    events = [json.loads(line) for line in (world.mesh.directory / "cp" / "audit.jsonl").read_text().splitlines()]
    assert {event["fields"]["name"] for event in events if event["event"] == "operator.login"} == {
        *("vault-ann", "vault-bob", "vault-tom"),
    }
    assert [event for event in events if event["event"] == "operator.login_denied"]


async def test_what_vault_has_revoked_or_somebody_has_made_up_lets_nobody_in(world: World, refusal: Any) -> None:
    world.user("ann", "mesh-admin")
    token = world.token("ann")
    key = new_key()
    csr = make_csr(key)
    await world.log_in(token, csr=csr)
    # A child of it with the same policies and whatever metadata, a login elsewhere, and who is no entity at all.
    create = world.bao.admin.auth.token.create
    child = create(policies=["mesh-admin"], meta={"username": "ann"})["auth"]["client_token"]
    other = world.bao.admin
    other.auth.userpass.create_or_update_user("ann", "x has a password", policies=["mesh-admin"], mount_point="other")
    elsewhere = other.auth.userpass.login("ann", "x has a password", use_token=False, mount_point="other")
    for made_up in (child, elsewhere["auth"]["client_token"], world.bao.admin.token):
        assert "operators log in at" in (await refusal(world.log_in(made_up)))[1]
    # Whoever saw the request go by has no key to what it gives, and a request that was changed is none.
    broken = bytearray(csr)
    broken[-1] ^= 1
    assert (await refusal(world.log_in(token, csr=bytes(broken))))[0] is grpc.StatusCode.INVALID_ARGUMENT
    for text in ("short", "s.abc/../../sys/seal", "s.abcdefgh\r\nHost: x", "s" * 2000):
        code, message, _ = await refusal(world.log_in(text))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text not in message
    # An entity is let in by its name, and not while it is disabled.
    found = world.bao.admin.auth.token.lookup(token)["data"]["entity_id"]
    identity = world.bao.admin.secrets.identity
    identity.update_entity(found, name="paula", policies=[])
    world.user("ann")
    named = await world.log_in(world.token("ann"))
    assert v1.OperatorRole.Name(named.role) == "EDITOR"
    token = world.token("ann")
    identity.update_entity(found, name="paula", disabled=True)
    assert (await refusal(world.log_in(token)))[0] is grpc.StatusCode.PERMISSION_DENIED
    identity.update_entity(found, name="paula", disabled=False)
    token = world.token("ann")
    world.bao.admin.auth.token.revoke(token)
    assert "unknown or has ended" in (await refusal(world.log_in(token)))[1]
    # While Vault is away nobody logs in, and whoever has goes on.
    svid = await world.svid(world.token("ann"))
    late = world.token("ann")
    world.bao.process.send_signal(signal.SIGSTOP)
    try:
        assert (await refusal(world.log_in(late)))[0] is grpc.StatusCode.UNAVAILABLE
        await world.status(svid)
    finally:
        world.bao.process.send_signal(signal.SIGCONT)


async def test_the_command_logs_in_by_password_role_and_token(world: World) -> None:
    world.user("ann", "mesh-admin")
    approle = world.bao.admin.auth.approle
    approle.create_or_update_approle("ci", token_policies=["mesh-viewer"], token_ttl="300s")
    role_id = approle.read_role_id("ci")["data"]["role_id"]
    secret, password = world.directory / "secret", world.directory / "password"
    for file, text in (
        (secret, approle.generate_secret_id("ci")["data"]["secret_id"]),
        (password, "ann has a password"),
    ):
        file.touch(0o600)
        file.write_text(text)
    roots = ("--ca-file", str(world.mesh.directory / "cp" / "ca.pem"), "--trust-domain", "mesh.test")
    place = ("--address", f"127.0.0.1:{world.mesh.port}", *roots)
    userpass = ("--method", "userpass", "--username", "ann", "--secret-file", str(password))
    done = await world.command("login", "--vault", *userpass, *place)
    assert done.returncode == 0, done.stderr
    assert "spiffe://mesh.test/operator/vault-ann\tadmin\tuntil " in done.stdout
    # The context is there, and the next login needs no more than that.
    by_role = ("--method", "approle", "--role-id", role_id, "--secret-file", str(secret), "--name", "ci")
    done = await world.command("login", "--vault", *by_role, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["spiffe_id"] == f"spiffe://mesh.test/operator/vault-{role_id}"
    done = await world.command("--context", "login", "operator", "list", "-o", "json")
    assert {one["name"] for one in json.loads(done.stdout)["operators"]} == {"vault-ann", f"vault-{role_id}"}
    # What was made for it is revoked; what was there is left alone.
    accessors = world.bao.admin.auth.token.list_accessors()["data"]["keys"]
    token = world.token("ann")
    assert len(world.bao.admin.auth.token.list_accessors()["data"]["keys"]) == len(accessors) + 1
    done = await world.command("login", "--vault", VAULT_TOKEN=token)
    assert done.returncode == 0, done.stderr
    assert world.bao.admin.auth.token.lookup(token)["data"]["path"] == "auth/userpass/login/ann"
    for path in (world.directory / "c").rglob("*"):
        if path.is_file():
            assert token not in path.read_text()
            assert path.stat().st_mode & 0o077 == 0
    password.chmod(0o644)
    refused = await world.command("login", "--vault", *userpass)
    assert refused.returncode == 1
    assert "is open to others" in refused.stderr
    done = await world.command("--context", "login", "operator", "remove", "vault-ann")
    assert done.returncode == 0, done.stderr
    refused = await world.command("--context", "login", "operator", "list")
    assert refused.returncode != 0
    assert "operates this mesh no more" in refused.stderr
