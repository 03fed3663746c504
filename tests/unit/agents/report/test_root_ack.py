"""What an agent acknowledges of the roots: what everybody on the node trusts, and what they use."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from meshwarden.agents.report.root_ack import SETTLE_S, RootAck
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.authority.slot import Roots
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key


class Node:
    """A node with one workload, all of which a test says."""

    def __init__(self, svid: X509Svid, bundle: Any) -> None:
        self.own = self.svid = svid
        self.bundle = bundle
        self.delivered = True
        self.waits: set[str] = set()
        self.now_s = 0.0
        credentials: Any = SimpleNamespace(
            bundle=lambda: self.bundle, is_delivered=lambda _: self.delivered, svid=lambda _: self.svid
        )
        registry: Any = SimpleNamespace(workloads={"acme/web#1": None})
        identity: Any = SimpleNamespace(is_somebody=lambda: True, present=SimpleNamespace(svid=self.own))
        self.identity = identity
        self._ack = RootAck(identity, registry, credentials, lambda: self.now_s, lambda: {"k2", "k1"})

    def trusts(self) -> set[str]:
        return {root.hex() for root in self.look().trusted}

    def uses(self) -> set[str]:
        return {root.hex() for root in self.look().used}

    def look(self) -> Any:
        answers: Any = SimpleNamespace(waiting=lambda: self.waits)
        return self._ack.look(answers)

    def settle(self) -> None:
        self.look()
        self.now_s += SETTLE_S


async def issue(authority: MemoryAuthority) -> X509Svid:
    key = new_key()
    template = LeafTemplate(SpiffeId.workload("a.test", "acme", "web"), timedelta(hours=1))
    return X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)


@pytest.fixture
def authority() -> MemoryAuthority:
    return MemoryAuthority("a.test")


@pytest.fixture
async def node(authority: MemoryAuthority) -> Node:
    return Node(await issue(authority), await authority.bundle())


def names(roots: Roots) -> set[str]:
    return {root.fingerprint for root in roots}


async def test_jwt_keys_are_known_at_once(node: Node) -> None:
    assert list(node.look().jwt_keys) == ["k1", "k2"]


async def test_a_root_is_trusted_once_everybody_had_time_to_see_it(node: Node, authority: MemoryAuthority) -> None:
    (first,) = names(await authority.roots())
    assert (node.trusts(), node.uses()) == (set(), {first})
    node.settle()
    assert node.trusts() == {first}
    both = names(await authority.prepare(utc_now()))
    node.bundle = await authority.bundle()
    node.delivered = False
    node.settle()
    assert node.trusts() == {first}
    node.delivered, node.waits = True, {"acme/web#1/envoy"}
    node.settle()
    assert node.trusts() == {first}
    # What gRPC has is in its files: that it has not answered to a policy is something else.
    node.waits = {"acme/web#1/grpc"}
    assert node.trusts() == {first}
    node.settle()
    assert node.trusts() == both


async def test_what_comes_in_between_starts_the_wait_anew(node: Node) -> None:
    node.look()
    node.now_s += SETTLE_S / 2
    node.delivered = False
    node.look()
    node.delivered = True
    node.look()
    node.now_s += SETTLE_S / 2
    assert node.trusts() == set()
    node.now_s += SETTLE_S / 2
    assert len(node.trusts()) == 1


async def test_a_root_that_is_gone_is_not_trusted_any_more(node: Node, authority: MemoryAuthority) -> None:
    roots = await authority.prepare(utc_now())
    node.bundle = await authority.bundle()
    node.settle()
    assert node.trusts() == names(roots)
    await authority.activate(roots[1].fingerprint)
    await authority.revoke(roots[0].fingerprint)
    node.bundle, node.delivered = await authority.bundle(), False
    assert node.trusts() == {roots[1].fingerprint}
    # Certificates of nobody that is known lead nowhere.
    assert node.uses() == set()


async def test_the_nodes_own_certificate_counts(node: Node, authority: MemoryAuthority) -> None:
    roots = await authority.prepare(utc_now())
    node.bundle = await authority.bundle()
    await authority.activate(roots[1].fingerprint)
    node.svid = await issue(authority)
    assert node.uses() == names(roots)
    node.identity.present.svid = node.svid
    assert node.uses() == {roots[1].fingerprint}
    node.svid = None  # type: ignore[assignment]
    assert node.uses() == {roots[1].fingerprint}


async def test_before_data_planes_can_come_nothing_is_said(node: Node) -> None:
    assert not node._ack.look(None).trusted
