import os
from pathlib import Path

import pytest

from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.secrets.resolver import Secrets


async def refused(reference: str) -> str:
    with pytest.raises(SecretError) as caught:
        await Secrets().resolve(reference)
    assert caught.value.__cause__ is None
    return str(caught.value)


async def test_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MW_TEST", "hunter2")
    secret = await Secrets().resolve("env:MW_TEST")
    assert secret.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{secret} {secret!r}"
    monkeypatch.setenv("MW_TEST", "")
    assert "MW_TEST" in await refused("env:MW_TEST")


async def test_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    assert (await Secrets().resolve(f"file:{path}")).get_secret_value() == "hunter2"
    path.chmod(0o604)
    assert "open to every user" in await refused(f"file:{path}")


async def test_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "LoadCredentialEncrypted=ca" in await refused("credential:ca")
    unit = tmp_path / "unit"
    unit.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(unit))
    (unit / "ca").write_text("hunter2")
    (unit / "ca").chmod(0o400)
    assert (await Secrets().resolve("credential:ca")).get_secret_value() == "hunter2"
    assert "No such file" in await refused("credential:other")
    (tmp_path / "outside").write_text("hunter2")
    (tmp_path / "outside").chmod(0o600)
    for name in ("../outside", "..", ".", "/etc/passwd", "a/../ca", "\0", "ca\0"):
        assert "no name of a credential" in await refused(f"credential:{name}")
    assert len(await refused("credential:" + "x/" * 5000)) < 400
    (unit / "ca").chmod(0o404)
    assert "open to every user" in await refused("credential:ca")


async def test_what_a_file_may_not_be(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for content, reason in ((b"", "empty"), (b"\xff\xfe", "UTF-8"), (b"x" * 70_000, "larger")):
        path.write_bytes(content)
        path.chmod(0o600)
        assert reason in await refused(f"file:{path}")
    assert "No such file" in await refused(f"file:{tmp_path}/none")
    assert "directory" in await refused(f"file:{tmp_path}")
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "empty" in await refused(f"file:{tmp_path}/pipe")
    await refused("file:a\0b")


async def test_a_secret_in_the_place_of_its_reference_is_not_shown() -> None:
    for text in ("hunter2", "hunter2:x", "", ":", "ENV:hunter2"):
        assert "hunter2" not in await refused(text)


async def test_vault_must_be_configured() -> None:
    assert "no Vault is configured" in await refused("vault:kv/a#b")
