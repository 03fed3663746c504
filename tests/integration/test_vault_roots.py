"""Roots of a real OpenBao in slots: where its engine holds an intermediate of others, and where we may less."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import SHIPPED, OpenBao, role, root, serve

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.slot import RootRefused
from meshwarden.certs.authority.vault import VaultAuthority
from meshwarden.certs.authority.vault_client import VaultDenied
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.certs.verify import verify_chain

WEB = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1))
FORMS = pytest.mark.parametrize("form", [VaultAuthority, DirectVaultAuthority])


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


async def connect(bao: OpenBao, form: Any, mount: str) -> Any:
    bao.policy("upstream" if form is VaultAuthority else "direct", mount)
    return await form.open(bao.client(bao.token(policies=(mount,))), trust_domain="a.test", clock=utc_now, mount=mount)


async def sign(authority: Any) -> tuple[x509.Certificate, ...]:
    key = new_key()
    chain: tuple[x509.Certificate, ...] = await authority.sign(WEB, key.public_key(), utc_now(), make_csr(key))
    ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
    verify_chain(ders, {"a.test": await authority.bundle()}, utc_now())
    return chain


def below(bao: OpenBao, mount: str, outside: str) -> str:
    """Has a key of the engine signed by another authority, and imports what that gives; returns the issuer's id."""
    words = {"key_type": "ec", "key_bits": 256}
    csr = bao.admin.write_data(f"{mount}/issuers/generate/intermediate/internal", data=words | {"common_name": "below"})
    pki = bao.admin.secrets.pki
    signed = pki.sign_intermediate(csr["data"]["csr"], "below", {"ttl": "720h"}, mount_point=outside)["data"]
    pem = f"{signed['certificate']}\n{signed['issuing_ca']}"
    imported = bao.admin.write_data(f"{mount}/intermediate/set-signed", data={"certificate": pem})["data"]
    return str(next(issuer for issuer, key in imported["mapping"].items() if key))


@FORMS
async def test_an_intermediate_of_others_is_changed_by_them(bao: OpenBao, form: Any) -> None:
    mount, first, second = (f"{name}-{form.__name__.lower()}" for name in ("below", "first", "second"))
    root(bao.admin, first)
    root(bao.admin, second)
    bao.admin.sys.enable_secrets_engine("pki", path=mount, config={"max_lease_ttl": "8760h"})
    below(bao, mount, first)
    role(bao.admin, mount)
    authority = await connect(bao, form, mount)
    before = await authority.bundle()
    (old,) = await authority.roots()
    await sign(authority)
    with pytest.raises(RootRefused, match="kept elsewhere: import an issuer"):
        await authority.prepare(utc_now())
    bao.admin.write_data(f"{mount}/config/issuers", data={"default": below(bao, mount, second)})
    roots = await authority.roots()
    assert [(one.state, one.wanted) for one in roots] == [("ACTIVE", False), ("PREPARED", True)]
    assert (await authority.bundle()).roots[:1] == before.roots
    assert [one.state for one in await authority.activate(roots[1].fingerprint)] == ["OLD", "ACTIVE"]
    await sign(authority)
    # Whoever starts now sees the same, and so does who was there.
    again = await connect(bao, form, mount)
    assert [one.state for one in await again.roots()] == ["OLD", "ACTIVE"]
    await again.taint(old.fingerprint)
    assert [one.state for one in await authority.roots()] == ["TAINTED", "ACTIVE"]
    # Another intermediate below the same root is no matter of trust.
    bao.admin.write_data(f"{mount}/config/issuers", data={"default": below(bao, mount, second)})
    assert [one.state for one in await authority.roots()] == ["TAINTED", "ACTIVE"]
    await sign(authority)
    for one in (authority, again):
        await one.close()


@FORMS
async def test_a_root_that_signs_nothing_of_use_is_not_activated(bao: OpenBao, form: Any) -> None:
    """Its usage says that it may not: the one before goes on signing."""
    mount = f"useless-{form.__name__.lower()}"
    root(bao.admin, mount)
    role(bao.admin, mount)
    authority = await connect(bao, form, mount)
    before = await sign(authority)
    made = bao.admin.write_data(f"{mount}/root/rotate/internal", data={"common_name": "x", "key_type": "ec"})["data"]
    prepared = (await authority.roots())[1]
    words = {"issuer_name": "next", "usage": "read-only"}
    bao.admin.write_data(f"{mount}/issuer/{made['issuer_id']}", data=words)
    with pytest.raises(AuthorityError, match="requested usage issuing-certificates"):
        await authority.activate(prepared.fingerprint)
    assert [one.state for one in await authority.roots()] == ["ACTIVE", "PREPARED"]
    assert (await sign(authority))[-1].issuer == before[-1].issuer
    await authority.close()


async def test_who_may_make_no_root_goes_on_from_one_that_others_make(bao: OpenBao) -> None:
    root(bao.admin, "given")
    policy = (SHIPPED / "upstream.hcl").read_text().replace("pki/", "given/")
    bao.admin.sys.create_or_update_policy("given", policy.replace("given/issuers/generate", "none/issuers/generate"))
    client = bao.client(bao.token(policies=("given",)))
    authority = await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now, mount="given")
    with pytest.raises(
        VaultDenied, match=r'path "given/issuers/generate/root/internal" \{ capabilities = \["update"\]'
    ):
        await authority.prepare(utc_now())
    bao.admin.write_data("given/root/rotate/internal", data={"common_name": "next one", "key_type": "ec"})
    assert [(one.state, one.wanted) for one in await authority.roots()] == [("ACTIVE", False), ("PREPARED", False)]
    bao.admin.write_data("given/root/replace", data={})
    assert [(one.state, one.wanted) for one in await authority.roots()] == [("ACTIVE", False), ("PREPARED", True)]
    await authority.close()


async def test_while_vault_is_away_the_roots_are_as_they_were(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        client = server.client(server.token(), retry_s=0.2)
        authority = await VaultAuthority.open(client, trust_domain="a.test", clock=utc_now)
        roots, bundle = await authority.roots(), await authority.bundle()
        server.stop()
        assert await authority.roots() == roots
        assert await authority.bundle() is bundle
        assert "pki/issuers" in authority.fault
        with pytest.raises(AuthorityUnavailable):
            await authority.prepare(utc_now())
        await sign(authority)
        await authority.close()
