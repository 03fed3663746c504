"""A real OpenBao: set up once, opened again, with a token that can do little."""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hvac
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import SecretStr

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_direct import DirectVaultAuthority
from meshwarden.certs.authority.vault_login import token_login
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.local import port
from meshwarden.controlplane.local.bao import LEAF, Bao, new_authorization
from meshwarden.controlplane.local.check.mesh import Mesh
from meshwarden.controlplane.local.check.result import CheckFailed
from meshwarden.controlplane.local.check.vault import vault_root
from meshwarden.controlplane.local.handle import VaultInfo
from meshwarden.controlplane.local.plan import Plan
from meshwarden.controlplane.local.process import Program, children
from meshwarden.controlplane.local.record import Record


def test_leaves_are_signed_under_the_role_that_we_ship() -> None:
    shipped = json.loads((Path(__file__).parents[3] / "deploy" / "vault" / "direct-role.json").read_text())
    assert shipped == {**LEAF, "allowed_uri_sans": ["spiffe://mesh.example/*"]}


async def test_root_secret_and_token_outlast_a_restart(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    ports = port.choose(tmp_path / "ports.json", ["vault", "vault-cluster"], random.Random(os.getpid()))
    bao = Bao(plan, ports["vault"], ports["vault-cluster"])
    reports: list[str] = []
    async with children(Record(tmp_path), reports.append, random.Random(1), lambda name: 0) as kept:
        child = await kept.start(Program("vault", bao.argv(), dict(os.environ), tmp_path / "vault.log"))
        first = await bao.prepare("mesh.test", new_authorization())
        upstream = hvac.Client(bao.address, token=bao.token_file.read_text())
        with pytest.raises(hvac.exceptions.Forbidden):
            upstream.write_data("pki/issuer/default/sign/meshwarden", data={})
        root = hvac.Client(bao.address).secrets.pki.read_ca_certificate(mount_point=first.mount)
        await child.stop()
        await child.start()
        again = await bao.prepare("mesh.test", new_authorization(), "direct")
        anyone = hvac.Client(bao.address)
        assert anyone.secrets.pki.read_ca_certificate(mount_point=first.mount) == root
        ours = hvac.Client(bao.address, token=bao.token_file.read_text())
        assert again.root_pem == first.root_pem == root.encode()
        with pytest.raises(hvac.exceptions.Forbidden):
            ours.write_data("pki/issuer/default/sign-intermediate", data={})
        authority = await DirectVaultAuthority.open(
            VaultClient(bao.address, token_login(SecretStr(bao.token_file.read_text()))),
            trust_domain="mesh.test",
            clock=utc_now,
        )
        assert [one.public_bytes(Encoding.PEM) for one in (await authority.bundle()).roots] == [again.root_pem + b"\n"]
        await authority.close()
        held = ours.read("kv/data/meshwarden")["data"]["data"]
        assert held == {"otlp_authorization": again.otlp_authorization}
        for forbidden in ("sys/policies/acl/root", "pki/config/urls", "kv/data/other"):
            with pytest.raises(hvac.exceptions.Forbidden):
                ours.read(forbidden)
    assert reports == []
    for file in ("token", "keys.json", "bao.hcl"):
        assert (plan.vault / file).stat().st_mode & 0o777 == 0o600
    assert again.otlp_authorization not in repr(again)
    assert again.otlp_authorization not in (tmp_path / "vault.log").read_text()


async def test_the_root_that_openbao_has_shown_is_the_meshs_though_it_is_away(tmp_path: Path) -> None:
    root, other = [(await MemoryAuthority("mesh.test").bundle()).pem() for _ in range(2)]
    vault = VaultInfo("http://127.0.0.1:9", "pki", "Bearer x", "upstream", Path("/token"), root)
    mesh: Any = Mesh(SimpleNamespace(vault=vault, up_json={"control_plane": {"ca_file": str(tmp_path / "ca")}}))  # type: ignore[arg-type]
    (tmp_path / "ca").write_bytes(root)
    probes: Any = None
    assert "which is away" in await vault_root(mesh, probes)
    (tmp_path / "ca").write_bytes(other)
    with pytest.raises(CheckFailed, match="is not that of OpenBao"):
        await vault_root(mesh, probes)
    assert vault.authority()["form"] == "upstream"


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (("--vault-form", "direct"), "--vault-form is of --vault"),
        (("--vault", "--vault-away"), "--vault-away is of --vault and --check"),
        (("--check", "--vault-away"), "--vault-away is of --vault and --check"),
    ],
)
def test_what_is_of_vault_alone_is_refused_without(said: tuple[str, ...], refused: str) -> None:
    done = CliRunner().invoke(main, ["up", *said])
    assert done.exit_code == 2
    assert refused in done.output
