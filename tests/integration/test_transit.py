"""A passphrase that a real OpenBao has encrypted: it opens the root on disk, and while OpenBao is away none starts."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, serve

from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.port import AuthorityLocked
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.app import serve as serve_control_plane
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.secrets.port import SecretAway, SecretError
from meshwarden.controlplane.secrets.resolver import Secrets

PASSPHRASE = "hunter2 hunter2 hunter2"
HOUR = timedelta(hours=1)


@dataclass
class Settings:
    address: str
    token: str | None = "env:MW_TEST_TOKEN"
    approle: None = None
    ca_file: Path | None = None
    namespace: str | None = None


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture
def secrets(bao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> Secrets:
    monkeypatch.setenv("MW_TEST_TOKEN", bao.token(policies=("transit",)).get_secret_value())
    return Secrets(Settings(bao.address))


async def test_what_vault_decrypts_opens_the_root(
    secrets: Secrets, bao: OpenBao, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrapped = tmp_path / "wrapped"
    bao.wrap(wrapped, PASSPHRASE)
    assert PASSPHRASE not in wrapped.read_text()
    passphrase = await secrets.resolve(f"transit:transit/meshwarden#{wrapped}")
    assert passphrase.get_secret_value() == PASSPHRASE
    words = {"trust_domain": "a.test", "clock": utc_now}
    await DiskAuthority.open(tmp_path / "ca", passphrase=passphrase, create=True, **words)
    # The key is turned in Vault, and what it had encrypted encrypted anew: the root on disk stays as it is.
    bao.admin.write_data("transit/keys/meshwarden/rotate", data={})
    answer = bao.admin.write_data("transit/rewrap/meshwarden", data={"ciphertext": wrapped.read_text().strip()})
    wrapped.write_text(answer["data"]["ciphertext"])
    again = await secrets.resolve(f"transit:transit/meshwarden#{wrapped}")
    await DiskAuthority.open(tmp_path / "ca", passphrase=again, **words)
    with pytest.raises(AuthorityLocked):
        await DiskAuthority.open(tmp_path / "ca", passphrase=SecretStr("another horse battery"), **words)
    assert "hunter2" not in repr(passphrase) + caplog.text


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("transit:transit/meshwarden#{plain}", "the file holds nothing that transit has encrypted"),
        ("transit:transit/meshwarden#{foreign}", "refused: "),
        ("transit:transit/meshwarden#{binary}", "no text in UTF-8"),
        ("transit:transit/other#{plain2}", 'path "transit/decrypt/other"'),
        ("transit:none/meshwarden#{plain2}", 'path "none/decrypt/meshwarden"'),
        ("transit:transit/meshwarden#{none}", "No such file"),
        ("transit:transit/meshwarden#relative", "write it as transit:"),
        ("transit:transit/../sys/seal#{plain}", "write it as transit:"),
        ("transit:transit/meshwarden?x#{plain}", "write it as transit:"),
        ("transit:meshwarden#{plain}", "write it as transit:"),
        ("transit:#", "write it as transit:"),
        ("transit:" + "a/" * 2000 + "b#/x", "write it as transit:"),
    ],
)
async def test_what_cannot_be_decrypted(
    secrets: Secrets, bao: OpenBao, tmp_path: Path, reference: str, reason: str
) -> None:
    files = {name: tmp_path / name for name in ("plain", "plain2", "foreign", "binary", "none")}
    bao.admin.write_data("transit/keys/stranger", data={})
    bao.wrap(files["plain2"], PASSPHRASE)
    bao.wrap(files["foreign"], PASSPHRASE, "stranger")
    answer = bao.admin.write_data("transit/encrypt/meshwarden", data={"plaintext": "/////w=="})
    for name, content in (("plain", PASSPHRASE), ("binary", answer["data"]["ciphertext"])):
        files[name].touch(0o600)
        files[name].write_text(content)
    with pytest.raises(SecretError, match=reason) as caught:
        await secrets.resolve(reference.format(**files))
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 2500


async def test_no_other_file_is_sent_to_vault_and_what_opens_vault_is_not_its_own(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="no Vault is configured"):
        await Secrets().resolve("transit:transit/meshwarden#/etc/passwd")
    with pytest.raises(SecretError, match="can't lie in Vault"):
        await Secrets(Settings("https://v:1", "transit:transit/a#/b")).resolve("vault:kv/a#b")


async def test_while_vault_is_away_a_control_plane_goes_on_but_none_starts(
    tmp_path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = tmp_path / "wrapped"
    with serve(tmp_path) as server:
        server.wrap(wrapped, PASSPHRASE)
        monkeypatch.setenv("MW_TEST_TOKEN", server.token(policies=("transit",)).get_secret_value())
        secrets = Secrets(Settings(server.address))
        passphrase = await secrets.resolve(f"transit:transit/meshwarden#{wrapped}")
        words = {"trust_domain": "a.test", "clock": utc_now}
        authority = await DiskAuthority.open(short_dir / "cp" / "ca", passphrase=passphrase, create=True, **words)
        server.stop()
        # One that runs has what it needs.
        leaf = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), HOUR)
        assert await authority.sign(leaf, new_key().public_key(), utc_now())
        assert len(await authority.prepare(utc_now())) == 2
        with pytest.raises(SecretAway, match="transit/decrypt/meshwarden: ConnectionError"):
            await secrets.resolve(f"transit:transit/meshwarden#{wrapped}")
        config = Config(
            trust_domain="a.test",
            state_dir=short_dir / "cp",
            listen="127.0.0.1:0",
            metrics_listen="127.0.0.1:0",
            authority={"kind": "disk", "passphrase": f"transit:transit/meshwarden#{wrapped}"},
            vault={"address": server.address, "token": "env:MW_TEST_TOKEN"},
        )
        with pytest.raises(SecretError, match="transit/decrypt/meshwarden"):
            await serve_control_plane(config)
        assert not (short_dir / "cp" / "server.json").exists()
