"""The incremental variant of one ADS stream, without any I/O; the same three calls as in `sotw`.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot
from meshwarden.xds.stream import (
    WILDCARD,
    WILDCARD_TYPES,
    Bounds,
    Push,
    Verdict,
    in_order,
    is_routing,
    is_target,
    lacks_endpoints,
)
from meshwarden.xds.wire import delimited

_UNANSWERED = 64  # pushes of a type of which we still remember the version


class _Subscription:
    """One type on one stream."""

    __slots__ = ("asked", "names", "owed", "rejected", "sent", "unanswered", "wildcard")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.wildcard = False
        self.sent: dict[str, str] = {}  # {name: version} that the client has, or was sent
        self.asked = True  # an answer is due although nothing may have changed
        self.owed: set[str] = set()  # names that the client must hear of
        self.unanswered: OrderedDict[str, str] = OrderedDict()  # {nonce: version}
        self.rejected = False

    def changes(self, type_url: str, snapshot: Snapshot) -> tuple[list[Resource], list[str]]:
        """What to send and what to remove."""
        known = snapshot.named(type_url)
        names: Iterable[str] = known.keys() | self.sent.keys() | self.names if self.wildcard else self.names
        added: list[Resource] = []
        removed: list[str] = []
        for name in names:
            item = known.get(name)
            if item is None:
                if name in self.sent or name in self.owed:
                    removed.append(name)
            elif self.sent.get(name) != item.version or name in self.owed:
                added.append(item)
        return added, removed


class DeltaStream:
    """The server's side of `DeltaAggregatedResources`."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._types: dict[str, _Subscription] = {}
        self._count = 0

    def request(self, message: Any) -> Verdict | None:
        """Takes a DeltaDiscoveryRequest; returns the client's verdict on a push, if it holds one.

        Raises:
            Misuse: if the client asks for more than it may.
        """
        type_url: str = message.type_url
        subscription = self._types.get(type_url)
        if subscription is None:
            self._bounds.check_types(len(self._types) + 1)
            subscription = self._types[type_url] = _Subscription()
            self._begin(type_url, subscription, message)
        # Unlike in the other variant a request holds changes, which count whatever it answers.
        self._subscribe(type_url, subscription, message.resource_names_subscribe)
        self._unsubscribe(type_url, subscription, message.resource_names_unsubscribe)
        version = subscription.unanswered.pop(message.response_nonce, None) if message.response_nonce else None
        if version is None:
            return None
        if message.HasField("error_detail"):
            subscription.rejected = True
            return Verdict(type_url, version, message.error_detail.message or "rejected without a reason")
        subscription.rejected = False
        return Verdict(type_url, version)

    @property
    def unanswered(self) -> bool:
        """Whether the client has still to answer a push."""
        return any(subscription.unanswered for subscription in self._types.values())

    def wanted(self, snapshot: Snapshot) -> list[str]:
        """The types that have something to send, in the order to send them."""
        wanted = [type_url for type_url in self._types if self._wants(type_url, snapshot)]
        if any(map(is_routing, wanted)) and self._warming(snapshot):
            wanted = [type_url for type_url in wanted if not is_routing(type_url)]
        return in_order(wanted)

    def push(self, type_url: str, snapshot: Snapshot) -> Push:
        """The response of a wanted type; from now on the client is held to have it."""
        subscription = self._types[type_url]
        added, removed = subscription.changes(type_url, snapshot)
        if self._moving(type_url, snapshot):
            removed = [name for name in removed if name in subscription.owed]
        if type_url == api.CLUSTER:
            self._warm(subscription, added)
        for item in added:
            subscription.sent[item.name] = item.version
        for name in removed:
            subscription.sent.pop(name, None)
        subscription.owed.clear()
        subscription.asked = False
        self._count += 1
        nonce, version = f"{self._count:x}", snapshot.version(type_url)
        subscription.unanswered[nonce] = version
        while len(subscription.unanswered) > _UNANSWERED:
            subscription.unanswered.popitem(last=False)
        head = delimited(1, version.encode()) + delimited(4, type_url.encode()) + delimited(5, nonce.encode())
        gone = [delimited(6, name.encode()) for name in removed]
        return Push(type_url, version, nonce, b"".join([head, *(item.delta_entry for item in added), *gone]))

    def _begin(self, type_url: str, subscription: _Subscription, message: Any) -> None:
        """The first request of a type: what the client has from an earlier stream, and whether it wants all."""
        held = message.initial_resource_versions
        self._bounds.check_names(len(held), held)
        subscription.sent = dict(held)
        subscription.wildcard = type_url in WILDCARD_TYPES and not message.resource_names_subscribe

    def _subscribe(self, type_url: str, subscription: _Subscription, asked: Any) -> None:
        if not asked:
            return
        names = set(asked)
        if WILDCARD in names:
            names.discard(WILDCARD)
            if type_url in WILDCARD_TYPES:
                subscription.wildcard = subscription.asked = True
        self._bounds.check_names(len(names | subscription.names), names)
        # Asked for by name is answered, even if the client seems to have it: it may have thrown it away. What it
        # says in its first request that it has is believed.
        held = subscription.sent if subscription.asked else {}
        subscription.owed |= {name for name in names if name not in held}
        subscription.names |= names

    def _unsubscribe(self, type_url: str, subscription: _Subscription, asked: Any) -> None:
        for name in asked:
            if name == WILDCARD:
                subscription.wildcard = False
                subscription.sent = {key: held for key, held in subscription.sent.items() if key in subscription.names}
                continue
            subscription.names.discard(name)
            subscription.owed.discard(name)
            had = subscription.sent.pop(name, None)
            if subscription.wildcard and had is not None:
                subscription.owed.add(name)  # it is still part of "all": say so, or that it is gone

    def _wants(self, type_url: str, snapshot: Snapshot) -> bool:
        subscription = self._types[type_url]
        if type_url not in api.TYPE_URLS and type_url not in snapshot.resources:
            return False  # not served here; the client's own timeout tells it so
        if subscription.asked and (subscription.wildcard or subscription.names):
            return True
        added, removed = subscription.changes(type_url, snapshot)
        if added:
            return True
        if removed and self._moving(type_url, snapshot):
            return any(name in subscription.owed for name in removed)
        return bool(removed)

    def _moving(self, type_url: str, snapshot: Snapshot) -> bool:
        """Whether deletions wait, because the client has not yet taken the routes that no longer lead there."""
        if not is_target(type_url):
            return False
        return any(
            is_routing(other) and (routing.unanswered or routing.rejected or self._wants(other, snapshot))
            for other, routing in self._types.items()
        )

    def _warming(self, snapshot: Snapshot) -> bool:
        """Whether an Envoy has yet to warm clusters that new routes may lead to: it drops calls to others.

        Only a client that takes all clusters does that; one that rejected some of them is not waited for.
        """
        clusters = self._types.get(api.CLUSTER)
        if clusters is None or not clusters.wildcard:
            return False
        if clusters.unanswered:
            return True
        endpoints = self._types.get(api.ENDPOINT)
        return not clusters.rejected and lacks_endpoints(snapshot, clusters.sent, endpoints.sent if endpoints else ())

    def _warm(self, clusters: _Subscription, changed: Iterable[Resource]) -> None:
        """Has the endpoints of changed clusters sent anew: Envoy holds a changed cluster back until they come."""
        endpoints = self._types.get(api.ENDPOINT)
        if endpoints is None:
            return
        for item in changed:
            if item.name in clusters.sent and item.endpoint_name in endpoints.names:
                endpoints.owed.add(item.endpoint_name)
