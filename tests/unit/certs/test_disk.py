import errno
import json
import os
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from certs_build import NOW
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from pydantic import SecretStr

from meshwarden.certs.authority import disk, disk_single
from meshwarden.certs.authority.disk import SCRYPT_N, DiskAuthority
from meshwarden.certs.authority.port import AuthorityError, AuthorityLocked, AuthorityMissing
from meshwarden.certs.issue import self_signed_root
from meshwarden.certs.svid import new_key

PASSPHRASE = "correct horse battery"


async def open_(directory: Path, passphrase: str = PASSPHRASE, **more: Any) -> DiskAuthority:
    more = {"trust_domain": "a.test", "clock": lambda: NOW, **more}
    return await DiskAuthority.open(directory, passphrase=SecretStr(passphrase), **more)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SCRYPT_N", 2**10)


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
    assert {stat.S_IMODE(path.stat().st_mode) for path in ca.iterdir() if path.is_file()} == {0o600}
    assert [path.name for path in ca.parent.iterdir()] == ["ca"]


def suffixes(directory: Path) -> list[str]:
    return sorted(path.suffix for path in directory.iterdir() if path.suffix in (".crt", ".key"))


async def test_keys_are_encrypted_and_forgotten_when_they_sign_no_more(ca: Path) -> None:
    assert SCRYPT_N >= 2**16
    assert json.loads((ca / "roots.json").read_text())["kdf"]["n"] == disk.SCRYPT_N
    authority = await open_(ca)
    prepared = (await authority.prepare(NOW))[1]
    keys = {path.name: path.read_bytes() for path in ca.glob("*.key")}
    assert len(keys) == 2
    assert all(b"ENCRYPTED PRIVATE KEY" in key for key in keys.values())
    await authority.activate(prepared.fingerprint)
    assert [path.name for path in ca.rglob("*.key")].count(f"{prepared.fingerprint}.key") == 2  # and its link
    assert suffixes(ca) == [".crt", ".crt", ".key"]
    await authority.revoke((await authority.roots())[0].fingerprint)
    assert suffixes(ca) == [".crt", ".key"]
    assert (await (await open_(ca)).roots())[0].fingerprint == prepared.fingerprint


async def test_who_does_not_know_the_passphrase_changes_nothing(ca: Path, tmp_path: Path) -> None:
    authority = await open_(ca)
    first = (await authority.roots())[0].fingerprint
    await authority.activate((await authority.prepare(NOW))[1].fingerprint)
    await authority.taint(first)
    stranger = tmp_path / "stranger"
    await open_(stranger, "another horse battery", create=True)
    (planted,) = stranger.glob("*.crt")
    (ca / planted.name).write_bytes(planted.read_bytes())
    (ca / planted.name).chmod(0o600)
    genuine = json.loads((ca / "roots.json").read_text())
    for change in (
        {"roots": [*genuine["roots"], {**genuine["roots"][0], "fingerprint": planted.stem, "state": "OLD"}]},
        {"roots": [{**genuine["roots"][0], "state": "OLD"}, genuine["roots"][1]]},
        {"generation": 99},
        {"trust_domain": "b.test"},
        {"seal": ""},
        {"seal": None},
        {"seal": "é"},
        {"more": 1},
    ):
        (ca / "roots.json").write_text(json.dumps(genuine | change))
        with pytest.raises(AuthorityLocked, match="changed by somebody else"):
            await open_(ca)
        with pytest.raises(AuthorityLocked):
            await authority.roots()
    assert len((await authority.bundle()).roots) == 2


async def test_what_a_crash_leaves_is_no_root_and_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "ca" / "..0123456789abcdef").mkdir(parents=True)
    with pytest.raises(AuthorityMissing):
        await open_(tmp_path / "ca")
    authority = await open_(tmp_path / "ca", create=True)
    before = await authority.roots()
    # Killed while the next generation was written: the link still leads to the one before.
    (tmp_path / "ca" / "..half").mkdir()
    (tmp_path / "ca" / "..half" / "roots.json").write_text("{")
    assert await (await open_(tmp_path / "ca")).roots() == before
    assert len(await authority.prepare(NOW)) == 2
    assert not (tmp_path / "ca" / "..half").exists()


async def test_a_disk_that_is_full_changes_nothing(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = await open_(ca)
    before = await authority.roots()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(AuthorityError, match="No space left"):
            await authority.prepare(NOW)
    assert await authority.roots() == before == await (await open_(ca)).roots()


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
    await open_(tmp_path / "ca", create=True)


async def test_another_trust_domain(ca: Path) -> None:
    with pytest.raises(AuthorityError, match=r"root of 'a\.test'"):
        await open_(ca, trust_domain="b.test")


async def test_an_ended_root(ca: Path) -> None:
    later: datetime = NOW + timedelta(days=4000)
    with pytest.raises(AuthorityError, match="has ended"):
        await open_(ca, clock=lambda: later)


async def test_open_to_others(ca: Path) -> None:
    (key,) = ca.glob("*.key")
    key.chmod(0o640)
    with pytest.raises(AuthorityError, match="chmod 600"):
        await open_(ca)


@pytest.mark.parametrize("name", ["*.crt", "*.key", "roots.json"])
@pytest.mark.parametrize("noise", [b"noise", b"", b"[]", b"{" * 70_000, b"[" * 60_000])
async def test_missing_or_damaged(ca: Path, name: str, noise: bytes) -> None:
    (path,) = ca.glob(name)
    path.write_bytes(noise)
    with pytest.raises(AuthorityError, match="backup"):
        await open_(ca)
    path.resolve().unlink()
    with pytest.raises(AuthorityError, match="backup"):
        await open_(ca, create=True)


@pytest.mark.parametrize("cost", [0, 1, 3, 2**21, 2**60, "65536", None, 1.5])
async def test_a_derivation_without_bounds(ca: Path, cost: object) -> None:
    words = json.loads((ca / "roots.json").read_text())
    words["kdf"]["n"] = cost
    (ca / "roots.json").write_text(json.dumps(words))
    with pytest.raises(AuthorityError, match="damaged"):
        await open_(ca)


async def test_anothers_key(ca: Path, tmp_path: Path) -> None:
    await open_(tmp_path / "other", create=True)
    (key,), (others,) = ca.glob("*.key"), (tmp_path / "other").glob("*.key")
    key.write_bytes(others.read_bytes())
    with pytest.raises(AuthorityError, match="damaged"):
        await open_(ca)


def earlier(directory: Path, trust_domain: str = "a.test") -> tuple[Path, bytes]:
    """A directory as it was written when there was one root; also the root in PEM."""
    key, salt = new_key(), b"s" * 16
    root = self_signed_root(trust_domain, key, NOW).public_bytes(Encoding.PEM)
    password = Scrypt(salt=salt, length=32, n=2**10, r=8, p=1).derive(PASSPHRASE.encode()).hex().encode()
    directory.mkdir(mode=0o700)
    kdf = json.dumps({"kdf": "scrypt", "n": 2**10, "r": 8, "p": 1, "salt": salt.hex()}).encode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    for name, content in (("root.crt", root), ("root.key", private), ("root.kdf", kdf)):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o600)
    return directory, root


class TestARootOfBefore:
    async def test_is_taken_over_and_its_files_vanish(self, tmp_path: Path) -> None:
        directory, root = earlier(tmp_path / "ca")
        for _ in range(2):
            authority = await open_(directory)
            assert (await authority.bundle()).pem() == root
            assert [state.state.value for state in await authority.roots()] == ["ACTIVE"]
            assert not list(directory.glob("root.*"))
        await authority.activate((await authority.prepare(NOW))[1].fingerprint)

    async def test_that_was_left_half_way_is_finished(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory, root = earlier(tmp_path / "ca")
        with monkeypatch.context() as patched:
            patched.setattr(disk_single, "forget", lambda _: None)
            await open_(directory)
        assert list(directory.glob("root.*"))
        (directory / "root.crt").unlink()
        assert (await (await open_(directory)).bundle()).pem() == root
        assert not list(directory.glob("root.*"))

    async def test_is_left_alone_where_the_passphrase_is_wrong(self, tmp_path: Path) -> None:
        directory, _ = earlier(tmp_path / "ca")
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        with pytest.raises(AuthorityLocked, match="passphrase"):
            await open_(directory, "another horse battery")
        assert before == {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}

    @pytest.mark.parametrize("name", ["root.crt", "root.key", "root.kdf"])
    @pytest.mark.parametrize(
        "content", [None, b"", b"noise", b"{}", b'{"kdf":"scrypt","n":1048577,"salt":""}', b"[" * 9000]
    )
    async def test_that_is_damaged_is_refused(self, tmp_path: Path, name: str, content: bytes | None) -> None:
        directory, _ = earlier(tmp_path / "ca")
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(content)
        with pytest.raises(AuthorityError):
            await open_(directory)
        assert not (directory / "roots.json").exists()

    async def test_of_another_or_open_to_others_is_refused(self, tmp_path: Path) -> None:
        directory, _ = earlier(tmp_path / "b", "b.test")
        with pytest.raises(AuthorityError, match=r"b\.test"):
            await open_(directory)
        directory, _ = earlier(tmp_path / "ca")
        (directory / "root.key").chmod(0o640)
        with pytest.raises(AuthorityError, match="open to others"):
            await open_(directory)
        other, _ = earlier(tmp_path / "other")
        (directory / "root.key").unlink()
        (other / "root.key").rename(directory / "root.key")
        with pytest.raises(AuthorityError, match="isn't the key"):
            await open_(directory)
