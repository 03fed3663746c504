import errno
import json
import os
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from certs_build import NOW
from pydantic import SecretStr

from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.authority.port import AuthorityError, AuthorityLocked, AuthorityMissing

PASSPHRASE = "correct horse battery"


async def open_(directory: Path, passphrase: str = PASSPHRASE, **more: Any) -> DiskAuthority:
    more = {"trust_domain": "a.test", "clock": lambda: NOW, **more}
    return await DiskAuthority.open(directory, passphrase=SecretStr(passphrase), **more)


@pytest.fixture
async def ca(tmp_path: Path) -> Path:
    await open_(tmp_path / "ca", create=True)
    return tmp_path / "ca"


async def test_a_root_is_not_made_by_accident(tmp_path: Path) -> None:
    with pytest.raises(AuthorityMissing, match="create = true"):
        await open_(tmp_path / "ca")
    assert not list(tmp_path.iterdir())


async def test_a_root_is_kept(ca: Path) -> None:
    first = await (await open_(ca)).bundle()
    assert (await (await open_(ca, create=True)).bundle()).roots == first.roots
    assert stat.S_IMODE(ca.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in ca.iterdir()} == {0o600}
    assert [path.name for path in ca.parent.iterdir()] == ["ca"]


async def test_the_key_is_encrypted(ca: Path) -> None:
    assert b"ENCRYPTED PRIVATE KEY" in (ca / "root.key").read_bytes()
    assert json.loads((ca / "root.kdf").read_text())["n"] >= 2**16


async def test_a_wrong_passphrase(ca: Path) -> None:
    with pytest.raises(AuthorityLocked) as caught:
        await open_(ca, "incorrect horse battery")
    assert "horse" not in str(caught.value)


async def test_a_short_passphrase(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="12 characters"):
        await open_(tmp_path / "ca", "short", create=True)


async def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuthorityError, match="Not a directory"):
        await open_(tmp_path / "file" / "ca", create=True)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(AuthorityError, match="No space left"):
            await open_(tmp_path / "ca", create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    await open_(tmp_path / "ca", create=True)


async def test_another_trust_domain(ca: Path) -> None:
    with pytest.raises(AuthorityError, match=r"root of 'a\.test'"):
        await open_(ca, trust_domain="b.test")


async def test_an_ended_root(ca: Path) -> None:
    later: datetime = NOW + timedelta(days=4000)
    with pytest.raises(AuthorityError, match="has ended"):
        await open_(ca, clock=lambda: later)


async def test_open_to_others(ca: Path) -> None:
    (ca / "root.key").chmod(0o640)
    with pytest.raises(AuthorityError, match="chmod 600"):
        await open_(ca)


@pytest.mark.parametrize("name", ["root.crt", "root.key", "root.kdf"])
async def test_missing_or_damaged(ca: Path, name: str) -> None:
    (ca / name).write_bytes(b"noise")
    with pytest.raises(AuthorityError):
        await open_(ca)
    (ca / name).unlink()
    with pytest.raises(AuthorityError, match="backup"):
        await open_(ca, create=True)


@pytest.mark.parametrize("cost", [0, 1, 3, 2**21, 2**60])
async def test_a_derivation_without_bounds(ca: Path, cost: int) -> None:
    words = json.loads((ca / "root.kdf").read_text()) | {"n": cost}
    (ca / "root.kdf").write_text(json.dumps(words))
    with pytest.raises(AuthorityError, match="damaged"):
        await open_(ca)


async def test_anothers_key(ca: Path, tmp_path: Path) -> None:
    await open_(tmp_path / "other", create=True)
    for name in ("root.key", "root.kdf"):
        (ca / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(AuthorityError, match="isn't the key"):
        await open_(ca)
