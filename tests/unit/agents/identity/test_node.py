"""The node's own identity on disk."""

import random
from datetime import timedelta
from pathlib import Path

from meshwarden.agents.channel import ControlPlane
from meshwarden.agents.identity.node import Identity, NodeIdentity
from meshwarden.agents.seal import seals
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.seal import Seal
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key


async def present() -> Identity:
    authority, key = MemoryAuthority("mesh.test"), new_key()
    template = LeafTemplate(SpiffeId.for_node("mesh.test", "eu", "node-a"), timedelta(hours=1))
    chain = await authority.sign(template, key.public_key(), utc_now())
    return Identity(X509Svid.of(chain, key), await authority.bundle(), "eu")


def load(directory: Path, roots: Bundle, *seals: Seal) -> NodeIdentity:
    control_plane = ControlPlane("127.0.0.1:1", "mesh.test")
    return NodeIdentity("node-a", control_plane, directory, roots, utc_now, random.Random(1), seals)


async def test_a_disk_that_refuses_is_no_reason_to_end(tmp_path: Path) -> None:
    first, second = await present(), await present()
    directory = tmp_path / "identity"
    node = load(directory, first.bundle)
    told: list[bool] = []
    node.listen(lambda: told.append(node.is_good()))
    directory.write_text("where a directory should be")
    node._take(first)
    node.set_bundle(second.bundle)
    node.save_rest()
    assert told == [True, True]
    directory.unlink()
    node.save_rest()
    again = load(directory, first.bundle)
    assert again.present.svid.serial == first.svid.serial
    assert again.present.bundle.roots == second.bundle.roots


async def test_an_identity_that_cannot_be_used_is_set_aside(tmp_path: Path) -> None:
    identity = await present()
    node = load(tmp_path / "identity", identity.bundle)
    node._take(identity)
    (tmp_path / "identity/..data/tls.key").write_bytes(b"junk")
    assert not load(tmp_path / "identity", identity.bundle).is_somebody()
    assert len(list(tmp_path.glob("identity.aside-*"))) == 1


def key_on_disk(directory: Path, identity: Identity) -> bool:
    """Whether the key can be read by whoever reads the disk."""
    body = identity.svid.key_pem()
    return any(body in path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_the_key_is_encrypted_and_nobody_elses_key_opens_it(tmp_path: Path) -> None:
    identity, directory = await present(), tmp_path / "identity"
    seal, other = Seal(b"s" * 32), Seal(b"o" * 32)
    load(directory, identity.bundle, seal)._take(identity)
    assert not key_on_disk(directory, identity)
    assert load(directory, identity.bundle, seal).present.svid.serial == identity.svid.serial
    # Of an older key it is closed anew by the present one.
    assert load(directory, identity.bundle, other, seal).is_somebody()
    assert load(directory, identity.bundle, other).is_somebody()
    assert not load(directory, identity.bundle, seal).is_somebody()
    assert len(list(tmp_path.glob("identity.aside-*"))) == 1


async def test_a_key_in_the_clear_is_encrypted_at_the_next_start(tmp_path: Path) -> None:
    identity, directory = await present(), tmp_path / "identity"
    load(directory, identity.bundle)._take(identity)
    assert key_on_disk(directory, identity)
    assert load(directory, identity.bundle, Seal(b"s" * 32)).is_somebody()
    assert not key_on_disk(directory, identity)
    assert load(directory, identity.bundle, Seal(b"s" * 32)).present.svid.serial == identity.svid.serial


async def test_the_encrypted_key_of_another_certificate_is_none(tmp_path: Path) -> None:
    identity, another, seal = await present(), await present(), Seal(b"s" * 32)
    for name, one in (("identity", identity), ("another", another)):
        load(tmp_path / name, one.bundle, seal)._take(one)
    sealed = (tmp_path / "another/tls.key.sealed").read_bytes()
    (tmp_path / "identity/..data/tls.key.sealed").write_bytes(sealed)
    assert not load(tmp_path / "identity", identity.bundle, seal).is_somebody()


async def test_what_seals_is_what_systemd_gives_or_a_file_of_our_own(tmp_path: Path) -> None:
    path, given = tmp_path / "cache-key", tmp_path / "credentials"
    given.mkdir()
    (given / "meshwarden-cache-key").write_bytes(b"g" * 32)
    (own,) = seals(None, path)
    assert [seal.id for seal in seals(None, path)] == [own.id]
    path.with_name("cache-key.new").replace(path)  # as the cache does once all is encrypted
    assert [seal.id for seal in seals(str(given), path)] == [Seal(b"g" * 32).id, own.id]
    # Where no key can be kept the identity is not lost with the process.
    assert seals(None, tmp_path / "nowhere" / "cache-key") == ()
