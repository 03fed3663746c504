"""Authority and secrets against a real OpenBao, under the policy that we ship."""

import asyncio
import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, root, serve

from meshwarden.certs.authority import vault
from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_client import VaultClient, VaultDenied
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.secrets.resolver import Secrets

pytestmark = pytest.mark.xdist_group("openbao")
WEB = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1))


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


async def connect(bao: OpenBao, **more: Any) -> VaultAuthority:
    words: dict[str, Any] = {
        "address": bao.address,
        "token": bao.token(),
        "trust_domain": "a.test",
        "clock": utc_now,
        "ca_file": bao.ca_file,
        "rng": random.Random(1),
    }
    return await VaultAuthority.open(**(words | more))


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


async def test_over_tls_with_its_own_authority(tmp_path: Path) -> None:
    with serve(tmp_path, tls=True) as bao:
        authority = await connect(bao)
        assert await authority.bundle()
        await authority.close()
        with pytest.raises(AuthorityUnavailable, match="ca_file"):
            await connect(bao, ca_file=None)


async def test_nobody_there() -> None:
    with pytest.raises(AuthorityUnavailable):
        await VaultAuthority.open(
            address="http://127.0.0.1:9", token=SecretStr("hunter2"), trust_domain="a.test", clock=utc_now
        )


@pytest.mark.parametrize("address", ["http://vault.example:8200", "http://127.0.0.1.example", "ftp://127.0.0.1"])
async def test_the_token_never_travels_in_the_clear(address: str) -> None:
    with pytest.raises(AuthorityError, match="use https"):
        VaultClient(address, SecretStr("hunter2"))


async def test_a_token_that_may_not(bao: OpenBao) -> None:
    with pytest.raises(VaultDenied, match=r"meshwarden\.hcl") as caught:
        await connect(bao, token=SecretStr("hunter2"))
    assert "hunter2" not in str(caught.value)


async def test_the_policy_is_enough_and_no_more(bao: OpenBao) -> None:
    client = VaultClient(bao.address, bao.token())
    for what, work in {
        "issue": lambda vault: vault.write_data("pki/issue/any", data={}),
        "root": lambda vault: vault.write_data("pki/root/generate/internal", data={"common_name": "x"}),
        "revoke": lambda vault: vault.write_data("pki/revoke", data={"serial_number": "x"}),
        "list": lambda vault: vault.secrets.kv.v2.list_secrets("", mount_point="kv"),
        "other": lambda vault: vault.secrets.kv.v2.read_secret_version(
            "other", mount_point="kv", raise_on_deleted_version=True
        ),
        "token": lambda vault: vault.auth.token.create(),
    }.items():
        with pytest.raises(VaultDenied):
            await client.call(what, work)
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


async def test_the_token_is_renewed(bao: OpenBao) -> None:
    token = bao.token(ttl="60s", period="60s")
    authority = await connect(bao, token=token)
    accessor = bao.admin.auth.token.lookup(token.get_secret_value())["data"]["accessor"]

    def renewed() -> bool:
        return "last_renewal_time" in bao.admin.auth.token.lookup_accessor(accessor)["data"]

    assert not renewed()
    async with anyio.create_task_group() as group:
        group.start_soon(authority.run)
        deadline = anyio.current_time() + 60
        while not await anyio.to_thread.run_sync(renewed):
            assert anyio.current_time() < deadline
            await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    await authority.close()


async def test_a_vault_that_is_sealed_or_gone_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "LOOK", timedelta(seconds=1))
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
    monkeypatch.setattr(vault, "LOOK", timedelta(seconds=1))
    token = bao.token()
    authority = await connect(bao, token=token)
    async with anyio.create_task_group() as group:
        group.start_soon(authority.run)
        await anyio.to_thread.run_sync(bao.admin.auth.token.revoke, token.get_secret_value())
        async with asyncio.timeout(60):
            while "the token may not, or has ended" not in authority.fault:  # noqa: ASYNC110 - nothing signals it
                await anyio.sleep(0.02)
        group.cancel_scope.cancel()
    await authority.close()


async def test_tokens_that_never_end_need_no_renewal(bao: OpenBao) -> None:
    client = VaultClient(bao.address, SecretStr(bao.admin.token))
    assert await client.renew_token() is None
    client.close()


@dataclass
class Settings:
    address: str
    token: str
    ca_file: Path | None = None
    namespace: str | None = None


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
