"""Authority and secrets against a real OpenBao, under the policy that we ship."""

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import hvac
import pytest
import requests
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, prepare, role, root, serve, serve_stored

from meshwarden.certs.authority import vault_client
from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_client import VaultClient, VaultDenied, VaultSealed
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.authority.vault_login import AppRoleLogin, TokenLogin, token_login
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import IssueRefused, LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.config import ConfigError, load
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.resources.model import encode, key_of, wrap
from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.secrets.resolver import Secrets
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.node_service_pb2 import WorkloadCsr
from meshwarden.v1.resources_pb2 import Metadata, Selectors, WorkloadEntry, WorkloadEntrySpec

pytestmark = pytest.mark.xdist_group("openbao")
WEB = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1))


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@dataclass
class Settings:
    address: str
    token: str | None = None
    approle: None = None
    ca_file: Path | None = None
    namespace: str | None = None


async def connect(bao: OpenBao, token: SecretStr | None = None, **more: Any) -> VaultAuthority:
    words: dict[str, Any] = {"trust_domain": "a.test", "clock": utc_now, "rng": random.Random(1)}
    return await VaultAuthority.open(bao.client(token or bao.token(), retry_s=0.5), **(words | more))


async def direct(bao: OpenBao, token: SecretStr | None = None, **more: Any) -> DirectVaultAuthority:
    client = bao.client(token or bao.token(policies=("direct",)), retry_s=0.5)
    return await DirectVaultAuthority.open(client, **({"trust_domain": "a.test", "clock": utc_now} | more))


async def test_away_it_goes_on_signing_and_then_says_so(tmp_path: Path) -> None:
    ahead = timedelta(0)

    def clock() -> datetime:
        return utc_now() + ahead

    with serve(tmp_path) as bao:
        authority = await connect(bao, clock=clock)
        first = await authority.sign(WEB, new_key().public_key(), clock())
    for days in (0, 3, 4, 6):
        ahead = timedelta(days=days)
        assert (await authority.sign(WEB, new_key().public_key(), clock()))[1] == first[1]
    ahead = timedelta(days=8)
    with pytest.raises(AuthorityUnavailable, match="sign-intermediate"):
        await authority.sign(WEB, new_key().public_key(), clock())
    await authority.close()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve_stored(tmp_path_factory.mktemp("stored")) as server:
        yield server


async def test_one_that_is_run_as_in_production(stored: OpenBao, tmp_path: Path) -> None:
    """Over TLS with its own authority, initialised, unsealed, on files."""
    for open_it in (connect, direct):
        authority = await open_it(stored)
        key = new_key()
        assert await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
        await authority.close()
    client = VaultClient(stored.address, token_login(stored.token()), retry_s=0.1)
    with pytest.raises(AuthorityUnavailable, match="ca_file"):
        await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now)


async def test_nobody_there() -> None:
    client = VaultClient("http://127.0.0.1:9", token_login(SecretStr("hunter2")), retry_s=0.1)
    with pytest.raises(AuthorityUnavailable):
        await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now)


@pytest.mark.parametrize("address", ["http://vault.example:8200", "http://127.0.0.1.example", "ftp://127.0.0.1"])
async def test_the_token_never_travels_in_the_clear(address: str) -> None:
    with pytest.raises(AuthorityError, match="use https"):
        VaultClient(address, token_login(SecretStr("hunter2")))


async def test_a_token_that_may_not(bao: OpenBao) -> None:
    with pytest.raises(VaultDenied, match="unknown to Vault") as caught:
        await connect(bao, token=SecretStr("hunter2"))
    assert "hunter2" not in str(caught.value)


POLICY_LINE = r'path "{}" {{ capabilities = \["update"\] }}'


@pytest.mark.parametrize("policy", ["upstream", "direct", "secrets"])
async def test_a_policy_is_enough_and_no_more(bao: OpenBao, policy: str) -> None:
    """Enough: the other tests have tokens of these policies. No more: whatever isn't a policy's own is refused."""
    client = bao.client(bao.token(policies=(policy,)))
    calls = {
        "upstream": ("pki/root/sign-intermediate", {}),
        "direct": ("pki/sign/meshwarden", {}),
        "other role": ("pki/sign/other", {}),
        "issue": ("pki/issue/meshwarden", {}),
        "verbatim": ("pki/sign-verbatim/meshwarden", {}),
        "role": ("pki/roles/meshwarden", {"allow_any_name": True}),
        "root": ("pki/root/generate/internal", {"common_name": "x"}),
        "revoke": ("pki/revoke", {"serial_number": "x"}),
        "import": ("pki/issuers/import/bundle", {"pem_bundle": "x"}),
        "write": ("kv/data/meshwarden", {"data": {}}),
        "token": ("auth/token/create", {}),
        "policy": ("sys/policies/acl/direct", {"policy": ""}),
        "seal": ("sys/seal", {}),
    }
    calls.pop(policy, None)
    for path, data in calls.values():
        with pytest.raises(VaultDenied, match=POLICY_LINE.format(path)):
            await client.call(path, lambda vault, path=path, data=data: vault.write_data(path, data=data))
    reads = {"kv/data/other", "kv/metadata/other", "pki/roles/meshwarden", "sys/mounts"}
    reads |= set() if policy == "secrets" else {"kv/data/meshwarden"}
    for path in reads:
        with pytest.raises(VaultDenied, match=r'capabilities = \["read"\]'):
            await client.call(path, lambda vault, path=path: vault.read(path), "read")
    with pytest.raises(VaultDenied):
        await client.call("kv/metadata", lambda vault: vault.list("kv/metadata/"), "list")
    client.close()


async def test_an_rsa_root(bao: OpenBao) -> None:
    root(bao.admin, "pki-rsa", "rsa", 2048)
    admin = SecretStr(bao.admin.token)
    authority = await connect(bao, mount="pki-rsa", token=admin)
    assert len(await authority.sign(WEB, new_key().public_key(), utc_now())) == 2
    await authority.close()


async def test_a_root_that_peers_would_not_trust_is_found_at_once(bao: OpenBao) -> None:
    root(bao.admin, "pki-ed", "ed25519", 0)
    with pytest.raises(AuthorityError, match="of no use"):
        await connect(bao, mount="pki-ed", token=SecretStr(bao.admin.token))


async def test_a_ttl_that_the_engine_cuts(bao: OpenBao) -> None:
    bao.admin.sys.tune_mount_configuration("pki", max_lease_ttl="30m")
    try:
        authority = await connect(bao)
        with pytest.raises(AuthorityUnavailable, match="raise the TTL"):
            await authority.sign(WEB, new_key().public_key(), utc_now())
        await authority.close()
    finally:
        bao.admin.sys.tune_mount_configuration("pki", max_lease_ttl="87600h")


async def test_no_engine_there(bao: OpenBao) -> None:
    with pytest.raises(AuthorityError) as caught:
        await connect(bao, mount="none", token=SecretStr(bao.admin.token))
    assert "none/root/sign-intermediate" in str(caught.value)


async def tended(client: VaultClient, until: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(until):
            await client.tend()


async def test_a_token_is_renewed_at_half_of_its_life(bao: OpenBao) -> None:
    token = bao.token(ttl="4s", period="4s")
    client, accessor = bao.client(token), bao.admin.auth.token.lookup(token.get_secret_value())["data"]["accessor"]

    def renewed() -> bool:
        return "last_renewal_time" in bao.admin.auth.token.lookup_accessor(accessor)["data"]

    await client.tend()
    assert not renewed()
    await tended(client, renewed)
    assert client.fault == ""
    client.close()


async def test_a_file_with_a_new_token_is_read_again(bao: OpenBao) -> None:
    """As the agent of Vault leaves one where the last can't be renewed any more, or was revoked."""
    present = [bao.token(ttl="3s", renewable=False)]

    async def read() -> SecretStr:
        return present[-1]

    client = VaultClient(bao.address, TokenLogin(read, "the token of file:/run/token"))
    assert await client.tend() <= timedelta(seconds=1)
    await tended(client, lambda: client.fault != "")
    assert "the token of file:/run/token" in client.fault
    present.append(bao.token())
    await client.tend()
    assert client.fault == ""
    bao.admin.auth.token.revoke(present[-1].get_secret_value())
    present.append(bao.token())
    assert await client.call("pki/sign/x", lambda vault: vault.auth.token.lookup_self())
    client.close()


@pytest.fixture(scope="module")
def approle(bao: OpenBao) -> tuple[str, SecretStr]:
    bao.admin.sys.enable_auth_method("approle", path="machines")
    words: dict[str, Any] = {"token_policies": ["upstream"], "token_ttl": "4s", "token_max_ttl": "6s"}
    bao.admin.auth.approle.create_or_update_approle(
        "mesh", **words, token_no_default_policy=True, mount_point="machines"
    )
    role_id = bao.admin.auth.approle.read_role_id("mesh", mount_point="machines")["data"]["role_id"]
    secret_id = bao.admin.auth.approle.generate_secret_id("mesh", mount_point="machines")["data"]["secret_id"]
    return role_id, SecretStr(secret_id)


def machine(bao: OpenBao, role_id: str, secret_id: SecretStr) -> VaultClient:
    async def read() -> SecretStr:
        return secret_id

    return VaultClient(bao.address, AppRoleLogin(role_id, read, "machines"), retry_s=0.5)


async def test_an_approle_logs_in_and_again_when_its_token_is_gone(
    bao: OpenBao, approle: tuple[str, SecretStr]
) -> None:
    client = machine(bao, *approle)
    authority = await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now)

    async def token() -> str:
        data = await client.call("auth/token/lookup-self", lambda vault: vault.auth.token.lookup_self(), "read")
        return str(data["data"]["id"])

    first = await token()
    bao.admin.auth.token.revoke(first)
    second = await token()
    assert second != first
    # Beyond its longest life a token can't be renewed: a new login comes before its end.
    async with asyncio.timeout(60):
        while await token() == second:
            await client.tend()
            assert client.fault == ""
    await authority.close()


async def test_an_approle_that_is_refused(bao: OpenBao, approle: tuple[str, SecretStr]) -> None:
    client = machine(bao, approle[0], SecretStr("hunter2"))
    with pytest.raises(VaultDenied, match="AppRole at auth/machines: the login is refused") as caught:
        await client.call("sys/mounts", lambda vault: vault.read("sys/mounts"))
    assert "hunter2" not in str(caught.value)
    await client.tend()
    assert "the login is refused" in client.fault
    client.close()


async def test_a_namespace(bao: OpenBao) -> None:
    bao.admin.write_data("sys/namespaces/team1", data={})
    inside = hvac.Client(bao.address, bao.admin.token, namespace="team1")
    prepare(inside)
    token = inside.auth.token.create(policies=["upstream"], no_default_policy=True)["auth"]["client_token"]
    for namespace in ("team1", None, "team2"):
        client = VaultClient(bao.address, token_login(SecretStr(token)), namespace=namespace)
        if namespace == "team1":
            authority = await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now)
            await authority.close()
            continue
        with pytest.raises(AuthorityError, match=r"may not|unknown to Vault|no namespace 'team2'"):
            await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now)


async def test_what_fails_for_a_moment_is_tried_again(bao: OpenBao) -> None:
    client, tries = bao.client(bao.token()), 0

    def flaky(vault: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise requests.exceptions.ConnectionError("gone")
        return vault.auth.token.lookup_self()

    assert await client.call("auth/token/lookup-self", flaky, "read")
    assert tries == 3
    client.close()


async def test_a_vault_that_is_sealed_or_gone_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_client, "LOOK", timedelta(seconds=0.1))
    with serve(tmp_path) as bao:
        authority = await connect(bao)
        async with anyio.create_task_group() as group:
            group.start_soon(authority.run)

            async def says(words: str) -> None:
                async with asyncio.timeout(60):
                    while words not in authority.fault:  # noqa: ASYNC110 - nothing signals it
                        await anyio.sleep(0.02)

            assert authority.fault == ""
            await anyio.to_thread.run_sync(bao.admin.sys.seal)
            await says("Vault is sealed")
            bao.stop()
            await says("sys/seal-status: ConnectionError")
            assert await authority.sign(WEB, new_key().public_key(), utc_now())
            group.cancel_scope.cancel()
        await authority.close()


async def test_a_token_that_is_taken_no_more_is_said_so(bao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_client, "LOOK", timedelta(seconds=0.1))
    token = bao.token()
    authority = await connect(bao, token=token)
    async with anyio.create_task_group() as group:
        group.start_soon(authority.run)
        await anyio.to_thread.run_sync(bao.admin.auth.token.revoke, token.get_secret_value())
        async with asyncio.timeout(60):
            while "unknown to Vault, or has ended" not in authority.fault:  # noqa: ASYNC110 - nothing signals it
                await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    await authority.close()


async def test_tokens_that_never_end_need_no_renewal(bao: OpenBao) -> None:
    client = bao.client(SecretStr(bao.admin.token))
    assert await client.tend() == vault_client.LOOK
    assert client.fault == ""
    client.close()


async def test_direct_while_away_nobody_signs_and_nobody_waits(tmp_path: Path) -> None:
    with serve(tmp_path) as bao:
        authority, key = await direct(bao), new_key()
        bao.admin.sys.seal()
        with pytest.raises(AuthorityUnavailable, match="sealed; unseal it"):
            await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
        bao.stop()
        asked = [authority.sign(WEB, key.public_key(), utc_now(), make_csr(key)) for _ in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {AuthorityUnavailable, VaultSealed}
        assert "sealed" in authority.fault or "ConnectionError" in authority.fault
        await authority.close()


async def test_direct_under_an_intermediate_of_vault(bao: OpenBao) -> None:
    """The chain has it, and the bundle the root above it."""
    bao.admin.sys.enable_secrets_engine("pki", path="pki-below", config={"max_lease_ttl": "8760h"})
    words = {"key_type": "ec", "key_bits": 256}
    made = bao.admin.secrets.pki.generate_intermediate("internal", "below", words, mount_point="pki-below")
    signed = bao.admin.secrets.pki.sign_intermediate(made["data"]["csr"], "below", {"ttl": "720h"}, mount_point="pki")
    pem = signed["data"]["certificate"] + "\n" + signed["data"]["issuing_ca"]
    bao.admin.secrets.pki.set_signed_intermediate(pem, mount_point="pki-below")
    role(bao.admin, "pki-below")
    authority, key = await direct(bao, SecretStr(bao.admin.token), mount="pki-below"), new_key()
    chain = await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
    assert len(chain) == 2
    assert len((await authority.bundle()).roots) == 1
    await authority.close()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"organization": ["Evil"]}, "has a subject that"),
        ({"code_signing_flag": True}, "extended key usage"),
        ({"server_flag": False}, "extended key usage"),
        ({"key_usage": ["DigitalSignature", "KeyEncipherment"]}, "key usage isn't"),
        ({"key_usage": ["CertSign"]}, "key usage"),
        ({"not_before_duration": "30m"}, "isn't what was asked for"),
        ({"not_before_duration": "0s"}, "isn't what was asked for"),
        ({"max_ttl": "10s"}, "isn't what was asked for"),
        ({"allowed_uri_sans": ["spiffe://other.test/*"]}, "URI Subject Alternative Names"),
    ],
)
async def test_direct_a_role_that_isnt_ours_is_found_at_once(
    bao: OpenBao, other: dict[str, object], reason: str
) -> None:
    role(bao.admin, "pki", **other)
    try:
        with pytest.raises(AuthorityError, match=reason):
            await direct(bao)
    finally:
        role(bao.admin, "pki")


async def test_direct_serves_nodes_workloads_and_operators(bao: OpenBao, tmp_path: Path) -> None:
    authority = await direct(bao)
    async with (
        open_store(tmp_path / "store.sqlite") as store,
        FileAuditLog.open(tmp_path / "audit.jsonl", utc_now) as audit,
    ):
        tokens = JoinTokens(store, utc_now)
        nodes = NodeIdentity(authority, store, tokens, audit, utc_now, trust_domain="a.test", region="eu")
        token = await tokens.create("n1")
        attested = await nodes.attest(token, make_csr(new_key()), "127.0.0.1")
        caller = SpiffeId.for_node("a.test", "eu", "n1")
        renewed = await nodes.renew(caller, make_csr(new_key()))
        spec = WorkloadEntrySpec(service="web", nodes=["n1"], selectors=Selectors(uid=1), dns_names=["web.acme.test"])
        entry = WorkloadEntry(kind="WorkloadEntry", metadata=Metadata(tenant="acme", name="web"), spec=spec)
        await store.commit([Put(key_of(entry), encode(wrap(entry)))])
        asked = [WorkloadCsr(tenant="acme", entry="web", csr=make_csr(new_key()))]
        (signed,) = (await nodes.sign_workloads(caller, asked)).results
        serving = ServingIdentity(authority, "a.test", "eu", audit=audit, clock=utc_now, rng=random.Random(1))
        await serving.issue()
        words: dict[str, Any] = {"audit": audit, "clock": utc_now, "rng": random.Random(1)}
        await OperatorCredential(authority, "a.test", "local", tmp_path / "operator", **words).issue()
        bundles = {"a.test": await authority.bundle()}
        assert verify_chain(attested.chain, bundles, utc_now()).spiffe_id == caller
        assert verify_chain(renewed.chain, bundles, utc_now()).spiffe_id == caller
        assert verify_chain(signed.chain, bundles, utc_now()).spiffe_id == WEB.spiffe_id, signed.message
        assert (tmp_path / "operator").exists()
    await authority.close()


async def test_direct_another_root_takes_over(bao: OpenBao) -> None:
    """What the first has signed is good until it ends: the bundle has both."""
    root(bao.admin, "pki-two")
    role(bao.admin, "pki-two")
    authority, key = await direct(bao, SecretStr(bao.admin.token), mount="pki-two"), new_key()
    before = await authority.bundle()
    words = {"key_type": "ec", "key_bits": 256, "ttl": "720h"}
    made = bao.admin.secrets.pki.generate_root("internal", "the next root", words, mount_point="pki-two")
    bao.admin.write_data("pki-two/config/issuers", data={"default": made["data"]["issuer_id"]})
    chain = await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
    after = await authority.bundle()
    assert after.revision == before.revision + 1
    assert set(before.roots) < set(after.roots)
    verify_chain([one.public_bytes(Encoding.DER) for one in chain], {"a.test": after}, utc_now())
    await authority.close()


async def test_direct_needs_the_request_and_two_minutes(bao: OpenBao) -> None:
    authority, key = await direct(bao), new_key()
    with pytest.raises(IssueRefused, match="signs a request only"):
        await authority.sign(WEB, key.public_key(), utc_now())
    short = LeafTemplate(WEB.spiffe_id, timedelta(seconds=30))
    with pytest.raises(IssueRefused, match="0:02:00 or more"):
        await authority.sign(short, key.public_key(), utc_now(), make_csr(key))
    with pytest.raises(IssueRefused, match="isn't what was asked for"):
        await authority.sign(WEB, new_key().public_key(), utc_now(), make_csr(key))
    await authority.close()


@pytest.fixture
def secrets(bao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> Secrets:
    monkeypatch.setenv("MW_TEST_TOKEN", bao.token().get_secret_value())
    return Secrets(Settings(bao.address, "env:MW_TEST_TOKEN"))


async def test_reads_a_secret(secrets: Secrets, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = await secrets.resolve("vault:kv/meshwarden#otlp")
    assert secret.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(secret) + caplog.text


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("vault:kv/meshwarden#none", "no text under 'none'"),
        ("vault:kv/meshwarden#number", "no text"),
        ("vault:kv/meshwarden/none#x", "nothing there"),
        ("vault:kv/other#otlp", "may not"),
        ("vault:kv/meshwarden", "write it as"),
        ("vault:kv/../sys/seal#x", "write it as"),
        ("vault:kv/a?b#x", "write it as"),
        ("vault:#", "write it as"),
        ("vault:kv/meshwarden#otlp\n", "write it as"),
    ],
)
async def test_secrets_that_cannot_be_had(secrets: Secrets, reference: str, reason: str) -> None:
    with pytest.raises(SecretError, match=reason) as caught:
        await secrets.resolve(reference)
    assert "hunter" not in str(caught.value)


async def test_what_opens_vault_cannot_lie_in_vault(bao: OpenBao) -> None:
    with pytest.raises(SecretError, match="can't lie in Vault"):
        await Secrets(Settings(bao.address, "vault:kv/a#b")).resolve("vault:kv/meshwarden#otlp")


@pytest.mark.parametrize(
    ("login", "reason"),
    [
        ('token = "file:/a"\n[authority.approle]\nrole_id = "r"\nsecret_id = "env:B"', "by token or by approle"),
        ("", "by token or by approle"),
        ('token = "vault:kv/a#b"', "authority.vault.token"),
        ('token = "hunter2"', "authority.vault.token"),
        ('[authority.approle]\nrole_id = "r"\nsecret_id = "hunter2"', "secret_id"),
        ('token = "file:/a"\nform = "other"', "'upstream' or 'direct'"),
        ('token = "file:/a"\nmount = "../sys"', "mount"),
        ('token = "file:/a"\nrole = "a/../b"', "role"),
    ],
)
def test_a_login_that_is_wrongly_said(tmp_path: Path, login: str, reason: str) -> None:
    file = tmp_path / "server.toml"
    head = f'trust_domain = "a.test"\nstate_dir = "{tmp_path}"\n[authority]\nkind = "vault"\naddress = "https://v:1"\n'
    file.write_text(head + login)
    with pytest.raises(ConfigError, match=reason) as caught:
        load(file)
    assert "hunter2" not in str(caught.value)


def test_a_control_plane_whose_leaves_vault_signs(bao: OpenBao, short_dir: Path) -> None:
    """It logs in as an AppRole; an address that it can't listen on ends it."""
    bao.admin.sys.enable_auth_method("approle", path="planes")
    words: dict[str, Any] = {"token_policies": ["direct"], "token_no_default_policy": True}
    bao.admin.auth.approle.create_or_update_approle("plane", **words, mount_point="planes")
    role_id = bao.admin.auth.approle.read_role_id("plane", mount_point="planes")["data"]["role_id"]
    secret_id = bao.admin.auth.approle.generate_secret_id("plane", mount_point="planes")["data"]["secret_id"]
    (short_dir / "server.toml").write_text(
        f'trust_domain = "a.test"\nstate_dir = "{short_dir}/state"\nlisten = "192.0.2.1:1"\n'
        f'metrics_listen = "127.0.0.1:0"\n'
        f'[authority]\nkind = "vault"\nform = "direct"\naddress = "{bao.address}"\n'
        f'[authority.approle]\nrole_id = "{role_id}"\nsecret_id = "env:MW_SECRET_ID"\nmount = "planes"\n'
    )
    command = [sys.executable, "-m", "meshwarden.controlplane", "server", "--config", str(short_dir / "server.toml")]
    environment = os.environ | {"MW_SECRET_ID": secret_id}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert "listen = 192.0.2.1:1" in done.stderr
    events = [json.loads(line) for line in (short_dir / "state" / "audit.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["authority.issue", "controlplane.issue", "authority.jwt_key"]
    assert "the root of a.test" in events[0]["fields"]["subject"]
    assert secret_id not in done.stdout + done.stderr
