"""What `meshwarden console` keeps for a browser to trust."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.controlplane.cli import console
from meshwarden.controlplane.cli.failure import Failure


async def root(authority: MemoryAuthority, *names: str) -> str:
    made = await authority.browser_root(names)
    assert made is not None
    return made.public_bytes(Encoding.PEM).decode()


async def test_the_root_for_browsers_stays_while_it_proves_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    authority = MemoryAuthority("mesh.test")
    first, other = await root(authority, "a.example"), await root(authority, "b.example")
    file = console._root("../up", first)
    assert file.parent.parent == tmp_path, "a name leads nowhere else"
    assert (file.read_text(), os.stat(file).st_mode & 0o777) == (first, 0o600)
    again = await root(authority, "a.example")  # signed anew
    assert again != first
    assert console._root("../up", again).read_text() == first
    assert console._root("../up", other).read_text() == other
    file.write_text("no certificate")
    assert console._root("../up", first).read_text() == first


async def test_what_would_prove_any_name_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    whole = (await MemoryAuthority("mesh.test").bundle()).pem().decode()
    for pem in (whole, "no certificate", "\x00", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(Failure, match="root for browsers is none"):
            console._root("up", pem)
    assert not list(tmp_path.rglob("*.pem"))
