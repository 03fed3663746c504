"""Each leaf signed by a real OpenBao, and one that is run as in production."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, role, root, serve, serve_stored

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_client import VaultClient, VaultSealed
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.authority.vault_login import token_login
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import IssueRefused, LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.attestor_token import TokenAttestor
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.operator import OperatorCredential
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.resources.model import encode, key_of, wrap
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.node_service_pb2 import AttestRequest, WorkloadCsr
from meshwarden.v1.resources_pb2 import Metadata, Selectors, WorkloadEntry, WorkloadEntrySpec

WEB = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1))


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


async def connect(bao: OpenBao, token: SecretStr | None = None, **more: Any) -> VaultAuthority:
    words: dict[str, Any] = {"trust_domain": "a.test", "clock": utc_now, "rng": random.Random(1)}
    return await VaultAuthority.open(bao.client(token or bao.token(), retry_s=0.5), **(words | more))


async def direct(bao: OpenBao, token: SecretStr | None = None, **more: Any) -> DirectVaultAuthority:
    client = bao.client(token or bao.token(policies=("direct",)), retry_s=0.5)
    return await DirectVaultAuthority.open(client, **({"trust_domain": "a.test", "clock": utc_now} | more))


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
        nodes = NodeIdentity(
            authority, store, {"join_token": TokenAttestor(tokens)}, audit, utc_now, trust_domain="a.test", region="eu"
        )
        token = await tokens.create("n1")
        attested = await nodes.attest(AttestRequest(join_token=token, csr=make_csr(new_key())), "127.0.0.1", "1")
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


async def test_direct_another_root_is_prepared_first(bao: OpenBao) -> None:
    """Whoever makes another the default in Vault cuts nobody off: it signs once it is activated."""
    root(bao.admin, "pki-two")
    role(bao.admin, "pki-two")
    authority, key = await direct(bao, SecretStr(bao.admin.token), mount="pki-two"), new_key()
    before = await authority.bundle()
    words = {"key_type": "ec", "key_bits": 256, "ttl": "720h"}
    made = bao.admin.secrets.pki.generate_root("internal", "the next root", words, mount_point="pki-two")
    bao.admin.write_data("pki-two/config/issuers", data={"default": made["data"]["issuer_id"]})
    assert [(root.state, root.wanted) for root in await authority.roots()] == [("ACTIVE", False), ("PREPARED", True)]
    after = await authority.bundle()
    assert after.revision == before.revision + 1
    chain = await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
    assert chain[-1].issuer == before.roots[0].subject
    await authority.activate((await authority.roots())[1].fingerprint)
    chain = await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
    assert chain[-1].issuer != before.roots[0].subject
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
