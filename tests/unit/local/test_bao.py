"""A real OpenBao: set up once, opened again, with a token that can do little."""

import os
import random
from pathlib import Path

import hvac
import pytest

from meshwarden.controlplane.local import port
from meshwarden.controlplane.local.bao import Bao, new_authorization
from meshwarden.controlplane.local.plan import Plan
from meshwarden.controlplane.local.process import Program, children
from meshwarden.controlplane.local.record import Record


async def test_root_secret_and_token_outlast_a_restart(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    ports = port.choose(tmp_path / "ports.json", ["vault", "vault-cluster"], random.Random(os.getpid()))
    bao = Bao(plan, ports["vault"], ports["vault-cluster"])
    reports: list[str] = []
    async with children(Record(tmp_path), reports.append, random.Random(1), lambda name: 0) as kept:
        child = await kept.start(Program("vault", bao.argv(), dict(os.environ), tmp_path / "vault.log"))
        first = await bao.prepare("mesh.test", new_authorization())
        root = hvac.Client(bao.address).secrets.pki.read_ca_certificate(mount_point=first.mount)
        await child.stop()
        await child.start()
        again = await bao.prepare("mesh.test", new_authorization())
        anyone = hvac.Client(bao.address)
        assert anyone.secrets.pki.read_ca_certificate(mount_point=first.mount) == root
        ours = hvac.Client(bao.address, token=bao.token_file.read_text())
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
