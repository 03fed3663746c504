"""What docs/identity.md has one type at Vault, at an OpenBao that has nothing yet; then what signs by it.

What docs/spiffe.md has one type there is typed in test_spiffe_endpoint.py.
"""

import os
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests import pages
from tests.shell import Shell

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.secrets.transit import TransitSecrets

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import ROOT_TOKEN, OpenBao, serve

PAGE = "docs/identity.md"
DOMAIN = "mesh.example"


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[OpenBao]:
    with serve(tmp_path, bare=True) as server:
        yield server


@pytest.fixture
def shell(bao: OpenBao, tmp_path: Path) -> Shell:
    (tmp_path / "deploy").symlink_to(pages.ROOT / "deploy")
    return Shell({**os.environ, "BAO_ADDR": bao.address, "BAO_TOKEN": ROOT_TOKEN, "HOME": str(tmp_path)}, tmp_path)


async def signs(authority: Authority) -> None:
    key = new_key()
    template = LeafTemplate(SpiffeId.workload(DOMAIN, "acme", "web"), timedelta(hours=1))
    assert await authority.sign(template, key.public_key(), utc_now(), make_csr(key))


async def test_roots_as_the_page_sets_them_up(bao: OpenBao, shell: Shell, tmp_path: Path) -> None:
    shell.types(PAGE, "bao secrets enable pki")
    shell.types(PAGE, "bao secrets tune -max-lease-ttl=87600h pki")
    shell.types(
        PAGE,
        'bao write pki/root/generate/internal common_name="root of mesh.example" key_type=ec key_bits=256 ttl=87600h',
    )
    shell.types(PAGE, "bao policy write meshwarden deploy/vault/upstream.hcl")
    token = (
        "bao token create -policy=meshwarden -no-default-policy -period=24h -field=token > /run/credentials/vault-token"
    )
    here = {"/run/credentials": str(tmp_path)}
    shell.types(PAGE, token, here)
    shell.types(PAGE, "chmod 600 /run/credentials/vault-token", here)
    upstream = await VaultAuthority.open(
        bao.client(SecretStr((tmp_path / "vault-token").read_text())), trust_domain=DOMAIN, clock=utc_now
    )
    await signs(upstream)
    shell.types(
        PAGE,
        "sed s/mesh.example/YOUR.TRUST.DOMAIN/ deploy/vault/direct-role.json | bao write pki/roles/meshwarden -",
        {"YOUR.TRUST.DOMAIN": DOMAIN},
    )
    shell.run("bao policy write meshwarden deploy/vault/direct.hcl")
    direct = await DirectVaultAuthority.open(
        bao.client(SecretStr((tmp_path / "vault-token").read_text())), trust_domain=DOMAIN, clock=utc_now
    )
    await signs(direct)
    await direct.close()
    shell.types(PAGE, "bao policy write meshwarden deploy/vault/upstream.hcl")
    # Three roots, one in each state.
    old = slot.active(await upstream.roots())
    new = slot.prepared(await upstream.prepare(utc_now()))
    assert new is not None
    await upstream.activate(new.fingerprint)
    await upstream.taint(old.fingerprint)
    await upstream.prepare(utc_now())
    listed = shell.types(PAGE, "bao list -detailed pki/issuers", rows=True)
    # Whoever keeps Vault makes the next root, and makes it the one that signs.
    shell.types(PAGE, "bao write pki/root/rotate/internal …", {"…": 'common_name="the next root"'})
    shell.types(PAGE, "bao write pki/root/replace", {"replace": "replace default=next"})
    tainted = re.findall(r"^(\S+).*meshwarden-tainted", listed, re.MULTILINE)
    shell.types(PAGE, "bao delete pki/issuer/…", {"…": tainted[0]})
    await upstream.close()


async def test_a_passphrase_and_a_role_as_the_page_sets_them_up(bao: OpenBao, shell: Shell, tmp_path: Path) -> None:
    shell.types(PAGE, "bao secrets enable transit")
    shell.types(PAGE, "bao write -f transit/keys/meshwarden")
    shell.types(PAGE, "umask 077")
    wrapped = (
        "bao write -field=ciphertext transit/encrypt/meshwarden plaintext=- > /etc/meshwarden/ca-passphrase.wrapped"
    )
    shell.types(
        PAGE,
        f"openssl rand -base64 32 | base64 | {wrapped}",
        {"openssl": "umask 077; openssl", "/etc/meshwarden": str(tmp_path)},
    )
    client = bao.client(SecretStr(ROOT_TOKEN))
    secret = await TransitSecrets(client).read(f"transit/meshwarden#{tmp_path}/ca-passphrase.wrapped")
    assert len(secret.get_secret_value()) >= 32
    client.close()
    shell.types(PAGE, "bao auth enable approle")
    shell.types(PAGE, "echo '# allows nothing' | bao policy write meshwarden-node -")
    shell.types(
        PAGE, "bao write auth/approle/role/node-a token_policies=meshwarden-node token_ttl=5m secret_id_num_uses=0"
    )
    role = bao.admin.auth.approle
    login = {"role_id": role.read_role_id("node-a")["data"]["role_id"]}
    answer = role.login(**login, secret_id=role.generate_secret_id("node-a")["data"]["secret_id"], use_token=False)
    assert answer["auth"]["metadata"]["role_name"] == "node-a"
    shell.types(PAGE, "bao login", {"bao login": f"bao login -no-print {ROOT_TOKEN}"})
