"""What is kept for a start without Vault: read as it was kept, and by nobody else's leave."""

import base64
import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from meshwarden.certs.authority import kept as module
from meshwarden.certs.authority.kept import KeptFiles, KeptUnusable
from meshwarden.certs.authority.port import AuthorityError
from meshwarden.certs.authority.vault_memory import ISSUING, ROOTS, VaultMemory
from meshwarden.certs.authority.vault_slots import Issuer, Kept, name_of, read_slots
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
PASSPHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCRYPT_N", 2**10)


def files(directory: Path, owner: str = "a.test", passphrase: str | None = PASSPHRASE) -> KeptFiles:
    return KeptFiles(directory / "kept", owner, SecretStr(passphrase) if passphrase is not None else None)


PASSPHRASES = pytest.mark.parametrize("passphrase", [PASSPHRASE, None])


@PASSPHRASES
def test_it_is_read_by_whoever_kept_it(tmp_path: Path, passphrase: str | None) -> None:
    kept = files(tmp_path, passphrase=passphrase)
    assert kept.is_secret is (passphrase is not None)
    assert kept.read("roots") is None
    kept.write("roots", b"first")
    kept.write("roots", b"second secret")
    assert files(tmp_path, passphrase=passphrase).read("roots") == b"second secret"
    directory = tmp_path / "kept"
    assert {path.name for path in directory.iterdir()} == {"roots", "salt" if passphrase else "key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert b"second" not in (directory / "roots").read_bytes()
    kept.drop("roots")
    kept.drop("roots")
    assert kept.read("roots") is None


@PASSPHRASES
def test_what_was_changed_is_not_used(tmp_path: Path, passphrase: str | None) -> None:
    kept = files(tmp_path, passphrase=passphrase)
    kept.write("roots", b"of ours")
    path = tmp_path / "kept" / "roots"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(KeptUnusable, match="roots: "):
            kept.read("roots")
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(KeptUnusable, match="roots: "):
            kept.read("roots")
    for other in (content + b"\0", b"", b"{}", os.urandom(module.MAX_BYTES + 1), content * 40_000):
        path.write_bytes(other)
        with pytest.raises(KeptUnusable, match="roots: "):
            kept.read("roots")
    path.write_bytes(content)
    assert kept.read("roots") == b"of ours"


def test_what_is_anothers_is_not_used(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.write("roots", b"of ours")
    path = tmp_path / "kept" / "roots"
    for other in (files(tmp_path, "b.test"), files(tmp_path, passphrase="another passphrase")):
        with pytest.raises(KeptUnusable, match="another trust domain's, or lies under another passphrase"):
            other.read("roots")
    # Of ours, under another name.
    path.rename(path.with_name("issuing"))
    with pytest.raises(KeptUnusable, match="was changed"):
        kept.read("issuing")
    path.with_name("salt").write_bytes(b"0" * 16)
    with pytest.raises(KeptUnusable):
        files(tmp_path).read("issuing")
    # One that was made without the passphrase counts for nothing where there is one, and the other way round.
    plain = files(tmp_path, passphrase=None)
    plain.write("roots", b"by whoever writes here")
    with pytest.raises(KeptUnusable):
        files(tmp_path).read("roots")


@PASSPHRASES
@pytest.mark.parametrize("mode", [0o620, 0o604, 0o660])
def test_what_others_may_reach_is_not_used(tmp_path: Path, passphrase: str | None, mode: int) -> None:
    kept = files(tmp_path, passphrase=passphrase)
    kept.write("roots", b"of ours")
    (tmp_path / "kept" / "roots").chmod(mode)
    with pytest.raises(KeptUnusable, match="others own it, or may read or write it"):
        kept.read("roots")


def test_no_link_is_followed_and_no_pipe_waited_for(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.write("other", b"of ours")
    path = tmp_path / "kept" / "roots"
    path.symlink_to(tmp_path / "kept" / "other")
    with pytest.raises(KeptUnusable):
        kept.read("roots")
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeptUnusable):
        kept.read("roots")
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(KeptUnusable):
        kept.read("roots")


def test_a_passphrase_that_is_short_and_a_disk_that_refuses_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="12 characters") as caught:
        files(tmp_path, passphrase="hunter2")
    assert "hunter2" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(AuthorityError, match="file"):
        files(tmp_path / "file")
    kept = files(tmp_path)
    kept.write("roots", b"first")
    (tmp_path / "kept" / "issuing").mkdir()
    with pytest.raises(OSError, match="directory"):
        kept.write("issuing", b"second")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["issuing", "roots", "salt"]


def issuer(number: int, what: str) -> Issuer:
    root = self_signed_root("a.test", new_key(), NOW + timedelta(hours=number), timedelta(days=3650))
    made = Issuer(f"{number:08x}-0000", "next", what == "active", (root,))
    return made if what == "next" else replace(made, name=name_of(made, what, NOW + timedelta(hours=number)))


def kept_roots() -> Kept:
    kept, call = read_slots([issuer(2, "active"), issuer(1, "tainted"), issuer(3, "next")])
    assert call is None
    return kept


def test_roots_are_remembered_with_their_states_and_order(tmp_path: Path) -> None:
    kept, memory = kept_roots(), VaultMemory(files(tmp_path, passphrase=None), "pki")
    assert memory.roots() is None
    memory.keep_roots(kept)
    again = VaultMemory(files(tmp_path, passphrase=None), "pki").roots()
    assert again == kept
    assert [state.state.value for state in kept.states] == ["TAINTED", "ACTIVE", "PREPARED"]
    with pytest.raises(KeptUnusable, match="of the engine at 'pki'"):
        VaultMemory(files(tmp_path, passphrase=None), "other").roots()


def test_a_key_is_kept_under_a_passphrase_alone(tmp_path: Path) -> None:
    key = new_key()
    held = IssuerKey(key, (self_signed_root("a.test", key, NOW, timedelta(days=1)),))
    secret = VaultMemory(files(tmp_path / "s"), "pki")
    open_ = VaultMemory(files(tmp_path / "o", passphrase=None), "pki")
    secret.keep_issuer(held)
    found = secret.issuer()
    assert found is not None
    assert (found.chain, found.key.public_key()) == (held.chain, key.public_key())
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for path in (tmp_path / "s" / "kept").iterdir():
        assert der not in path.read_bytes()
    open_.keep_issuer(held)
    assert open_.issuer() is None
    assert not (tmp_path / "o" / "kept" / ISSUING).exists()
    # Once the passphrase is taken away, the key goes as well.
    VaultMemory(files(tmp_path / "s", passphrase=None), "pki").keep_issuer(held)
    assert not (tmp_path / "s" / "kept" / ISSUING).exists()


def test_what_is_no_roots_and_no_key_is_not_used(tmp_path: Path) -> None:
    """Whatever lies under our own seal: nothing of it raises anything else, or is trusted."""
    place, kept = files(tmp_path), kept_roots()
    memory = VaultMemory(place, "pki")
    memory.keep_roots(kept)
    words = json.loads(place.read(ROOTS) or b"")
    first = words["issuers"][0]
    leaf = _leaf()
    broken: list[Any] = [
        None,
        [],
        {},
        7,
        words | {"v": 2},
        words | {"issuers": []},
        words | {"issuers": None},
        words | {"issuers": [7]},
        words | {"order": 7},
        words | {"issuers": [first | {"chain": []}]},
        words | {"issuers": [first | {"chain": ["!"]}]},
        words | {"issuers": [first | {"chain": ["AAAA"]}]},
        words | {"issuers": [first | {"chain": [leaf]}]},
        # Two roots that have nothing to do with each other.
        words | {"issuers": [first | {"chain": [first["chain"][0], words["issuers"][1]["chain"][0]]}]},
        # Nobody signs; or who does has no name of ours.
        words | {"issuers": [first | {"name": "payroll", "default": False}]},
        words | {"issuers": [first | {"name": "payroll", "default": True}]},
    ]
    for one in broken:
        place.write(ROOTS, json.dumps(one).encode())
        with pytest.raises(KeptUnusable):
            memory.roots()
    for raw in (b"", b"{", b"\xff", b"[" * 100_000):
        place.write(ROOTS, raw)
        place.write(ISSUING, raw)
        with pytest.raises(KeptUnusable):
            memory.roots()
        with pytest.raises(KeptUnusable):
            memory.issuer()
    key = new_key()
    memory.keep_issuer(IssuerKey(key, (self_signed_root("a.test", key, NOW, timedelta(days=1)),)))
    words = json.loads(place.read(ISSUING) or b"")
    for one in (words | {"key": first["chain"][0]}, words | {"chain": first["chain"]}, words | {"chain": [leaf]}, {}):
        place.write(ISSUING, json.dumps(one).encode())
        with pytest.raises(KeptUnusable):
            memory.issuer()


def _leaf() -> str:
    key = new_key()
    root = IssuerKey(key, (self_signed_root("a.test", key, NOW, timedelta(days=1)),))
    (leaf,) = issue_leaf(
        LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1)), key.public_key(), root, NOW
    )
    return base64.b64encode(leaf.public_bytes(Encoding.DER)).decode()
