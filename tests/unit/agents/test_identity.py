"""The node's own identity on disk."""

import random
from datetime import timedelta
from pathlib import Path

from meshwarden.agents.channel import ControlPlane
from meshwarden.agents.identity import Identity, NodeIdentity
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key


async def present() -> Identity:
    authority, key = MemoryAuthority("mesh.test"), new_key()
    template = LeafTemplate(SpiffeId.for_node("mesh.test", "eu", "node-a"), timedelta(hours=1))
    chain = await authority.sign(template, key.public_key(), utc_now())
    return Identity(X509Svid.of(chain, key), await authority.bundle(), "eu")


def load(directory: Path, roots: Bundle) -> NodeIdentity:
    control_plane = ControlPlane("127.0.0.1:1", "mesh.test")
    return NodeIdentity("node-a", control_plane, directory, roots, utc_now, random.Random(1))


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
