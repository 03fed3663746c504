"""The incremental variant of one ADS stream, without any I/O; the same three calls as in `sotw`.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meshwarden.xds import api
from meshwarden.xds.refusal import Refusal, Refused, Unanswered
from meshwarden.xds.snapshot import Resource, Snapshot
from meshwarden.xds.stream import (
    UNSAID,
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


class _Subscription:
    """One type on one stream."""

    __slots__ = ("asked", "names", "owed", "refused", "seen", "sent", "unanswered", "wildcard")

    def __init__(self, type_url: str) -> None:
        self.names: set[str] = set()
        self.wildcard = False
        self.sent: dict[str, str] = {}  # {name: version} that the client has, or was sent
        self.asked = True  # an answer is due although nothing may have changed
        self.owed: set[str] = set()  # names that the client must hear of
        self.unanswered = Unanswered()
        self.refused = Refused(type_url)
        self.seen: Mapping[str, Resource] | None = None  # what there was when nothing was left to say

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
        if also := self.refused.among(item.name for item in added):
            also -= {item.name for item in added}
            added += [known[name] for name in sorted(also & known.keys())]
        return added, removed

    def judge(self, version: str, pushed: Mapping[str, Resource | None], reason: str | None) -> None:
        """Takes the client's word of a push: an ACK, or a NACK for a reason."""
        if reason is None:
            self.refused.take(pushed)
            return
        self.refused.refuse(pushed, version, reason)
        self.owed |= self.refused.forget([name for name in pushed if name not in self.sent])


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
            subscription = self._types[type_url] = _Subscription(type_url)
            self._begin(type_url, subscription, message)
        # Unlike in the other variant a request holds changes, which count whatever it answers.
        self._subscribe(type_url, subscription, message.resource_names_subscribe)
        self._unsubscribe(type_url, subscription, message.resource_names_unsubscribe)
        push = subscription.unanswered.take(message.response_nonce) if message.response_nonce else None
        if push is None:
            return None
        reason = (message.error_detail.message or UNSAID) if message.HasField("error_detail") else None
        subscription.judge(*push, reason)
        return Verdict(type_url, push[0], reason)

    def refusals(self) -> list[Refusal]:
        """What the client refuses at present."""
        return [refusal for subscription in self._types.values() for refusal in subscription.refused.all()]

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
        subscription.seen = None
        added, removed = subscription.changes(type_url, snapshot)
        if self._moving(type_url, snapshot):
            removed = [name for name in removed if name in subscription.owed]
        if type_url == api.CLUSTER:
            self._warm(subscription, added)
        for item in added:
            subscription.sent[item.name] = item.version
        for name in removed:
            subscription.sent.pop(name, None)
        subscription.owed = subscription.refused.forget(removed)
        subscription.asked = False
        self._count += 1
        nonce, version = f"{self._count:x}", snapshot.version(type_url)
        subscription.unanswered.put(nonce, version, {item.name: item for item in added})
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
        subscription.seen = None
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
            subscription.seen = None
            if name == WILDCARD:
                subscription.wildcard = False
                gone = subscription.sent.keys() - subscription.names
                for other in gone:
                    del subscription.sent[other]
                subscription.owed |= subscription.refused.forget(gone)
                continue
            subscription.names.discard(name)
            subscription.owed.discard(name)
            had = subscription.sent.pop(name, None)
            subscription.owed |= subscription.refused.forget([name])
            if subscription.wildcard and had is not None:
                subscription.owed.add(name)  # it is still part of "all": say so, or that it is gone

    def _wants(self, type_url: str, snapshot: Snapshot) -> bool:
        subscription = self._types[type_url]
        if type_url not in api.TYPE_URLS and type_url not in snapshot.resources:
            return False  # not served here; the client's own timeout tells it so
        if subscription.asked and (subscription.wildcard or subscription.names):
            return True
        known = snapshot.named(type_url)
        if known is subscription.seen and not subscription.owed:
            return False
        added, removed = subscription.changes(type_url, snapshot)
        if added:
            return True
        if not removed:
            subscription.seen = known
        if removed and self._moving(type_url, snapshot):
            return any(name in subscription.owed for name in removed)
        return bool(removed)

    def _moving(self, type_url: str, snapshot: Snapshot) -> bool:
        """Whether deletions wait, because the client has not yet taken the routes that no longer lead there."""
        if not is_target(type_url):
            return False
        return any(
            is_routing(other) and (routing.unanswered or routing.refused or self._wants(other, snapshot))
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
        has = endpoints.sent if endpoints else ()
        return lacks_endpoints(snapshot, clusters.sent, clusters.refused, has)

    def _warm(self, clusters: _Subscription, changed: Iterable[Resource]) -> None:
        """Has the endpoints of changed clusters sent anew: Envoy holds a changed cluster back until they come."""
        endpoints = self._types.get(api.ENDPOINT)
        if endpoints is None:
            return
        for item in changed:
            if item.name in clusters.sent and item.endpoint_name in endpoints.names:
                endpoints.owed.add(item.endpoint_name)
