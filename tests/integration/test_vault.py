"""Authority and secrets against a real OpenBao, under the policy that we ship."""

import asyncio
import logging
import random
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
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, prepare, root, serve

from meshwarden.certs.authority import vault_client
from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_client import VaultClient, VaultDenied
from meshwarden.certs.authority.vault_login import AppRoleLogin, TokenLogin, token_login
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.config.config import ConfigError, load
from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.secrets.resolver import Secrets

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


@pytest.mark.parametrize("policy", ["upstream", "direct", "secrets", "transit"])
async def test_a_policy_is_enough_and_no_more(bao: OpenBao, policy: str) -> None:
    """Enough: the other tests have tokens of these policies. No more: whatever isn't a policy's own is refused."""
    client = bao.client(bao.token(policies=(policy,)))
    calls = {
        "upstream": ("pki/issuer/default/sign-intermediate", {}),
        "direct": ("pki/issuer/default/sign/meshwarden", {}),
        "other role": ("pki/issuer/default/sign/other", {}),
        "self-issued": ("pki/issuer/default/sign-self-issued", {}),
        "issuer": ("pki/issuer/default/revoke", {}),
        "issue": ("pki/issue/meshwarden", {}),
        "verbatim": ("pki/sign-verbatim/meshwarden", {}),
        "role": ("pki/roles/meshwarden", {"allow_any_name": True}),
        "root": ("pki/root/generate/internal", {"common_name": "x"}),
        "exported": ("pki/issuers/generate/root/exported", {"common_name": "x"}),
        "revoke": ("pki/revoke", {"serial_number": "x"}),
        "import": ("pki/issuers/import/bundle", {"pem_bundle": "x"}),
        "write": ("kv/data/meshwarden", {"data": {}}),
        "transit": ("transit/decrypt/meshwarden", {"ciphertext": "x"}),
        "encrypt": ("transit/encrypt/meshwarden", {"plaintext": "eA=="}),
        "other key": ("transit/decrypt/other", {"ciphertext": "x"}),
        "key": ("transit/keys/meshwarden/config", {"exportable": True}),
        "token": ("auth/token/create", {}),
        "policy": ("sys/policies/acl/direct", {"policy": ""}),
        "seal": ("sys/seal", {}),
    }
    calls.pop(policy, None)
    for path, data in calls.values():
        with pytest.raises(VaultDenied, match=POLICY_LINE.format(path)):
            await client.call(path, lambda vault, path=path, data=data: vault.write_data(path, data=data))
    reads = {"kv/data/other", "kv/metadata/other", "pki/roles/meshwarden", "sys/mounts"}
    reads |= set() if policy == "secrets" else {"kv/data/meshwarden", "kv/metadata/meshwarden"}
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
    with pytest.raises(AuthorityError, match="that leads to a root with an EC or RSA key"):
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
    assert "none/issuers: nothing is mounted there" in str(caught.value)


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
