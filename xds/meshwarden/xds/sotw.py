"""The state-of-the-world variant of one ADS stream, without any I/O.

A request goes in (`request`) and a verdict may come out; `wanted` says which types have something to send out of a
snapshot, `push` makes that response. The caller decides when, so a slow stream skips the snapshots between.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
"""

from collections.abc import Mapping
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


class _Subscription:
    """One type on one stream."""

    __slots__ = (
        "asked",
        "judged",
        "legacy_wildcard",
        "names",
        "nonce",
        "owed",
        "sent",
        "settled",
        "version",
        "wildcard",
    )

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()
        self.wildcard = False
        self.legacy_wildcard = False  # all, asked for by an empty list, which names replace
        self.nonce = ""
        self.version = ""
        self.sent: dict[str, Resource] = {}
        self.asked = True  # an answer is due although nothing may have changed
        self.owed: set[str] = set()  # names to send although they are unchanged
        self.settled = True  # the client answered the last push with an ACK
        self.judged = True  # the client answered the last push

    def content(self, type_url: str, snapshot: Snapshot) -> Mapping[str, Resource]:
        """What the client is to have."""
        known = snapshot.named(type_url)
        if self.wildcard:
            return known
        if len(self.names) < len(known):
            return {name: known[name] for name in self.names if name in known}
        return {name: item for name, item in known.items() if name in self.names}


class SotwStream:
    """The server's side of `StreamAggregatedResources`."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._types: dict[str, _Subscription] = {}
        self._count = 0

    def request(self, message: Any) -> Verdict | None:
        """Takes a DiscoveryRequest; returns the client's verdict on the last push of that type, if it holds one.

        Raises:
            Misuse: if the client asks for more than it may.
        """
        type_url: str = message.type_url
        subscription = self._types.get(type_url)
        first = subscription is None
        if subscription is None:
            self._bounds.check_types(len(self._types) + 1)
            subscription = self._types[type_url] = _Subscription()
        nonce: str = message.response_nonce
        # A nonce of an earlier stream is no answer to anything here. Some clients lose theirs: that is no ACK, but
        # the names count.
        if not first and nonce and nonce != subscription.nonce:
            return None
        self._subscribe(type_url, subscription, message.resource_names, first)
        if first or not nonce or subscription.judged:
            return None  # only names changed; gRPC then says again what it said of the last push
        subscription.judged = True
        if message.HasField("error_detail"):  # the only sign of a NACK: its version may equal that of an earlier ACK
            return Verdict(type_url, subscription.version, message.error_detail.message or "rejected without a reason")
        subscription.settled = True
        return Verdict(type_url, subscription.version)

    @property
    def unanswered(self) -> bool:
        """Whether the client has still to answer a push."""
        return any(not subscription.judged for subscription in self._types.values())

    def wanted(self, snapshot: Snapshot) -> list[str]:
        """The types that have something to send, in the order to send them."""
        wanted = [type_url for type_url in self._types if self._wants(type_url, snapshot)]
        if any(map(is_routing, wanted)) and self._warming(snapshot):
            wanted = [type_url for type_url in wanted if not is_routing(type_url)]
        return in_order(wanted)

    def push(self, type_url: str, snapshot: Snapshot) -> Push:
        """The response of a wanted type; from now on the client is held to have it."""
        subscription = self._types[type_url]
        content = subscription.content(type_url, snapshot)
        if type_url in WILDCARD_TYPES:  # what such a response leaves out is deleted
            after = {**self._held_back(type_url, subscription, content, snapshot), **content}
            entries: list[Resource] = list(after.values())
            self._warm(subscription, after)
        else:  # here nothing is deleted by leaving it out, so only what is new goes out
            after = dict(content)
            entries = [item for name, item in content.items() if self._is_new(subscription, name, item)]
        self._count += 1
        subscription.nonce = f"{self._count:x}"
        subscription.version = snapshot.version(type_url)
        subscription.sent, subscription.asked = after, False
        subscription.settled = subscription.judged = False
        subscription.owed.clear()
        head = delimited(1, subscription.version.encode()) + delimited(4, type_url.encode())
        payload = b"".join([head, delimited(5, subscription.nonce.encode()), *(item.sotw_entry for item in entries)])
        return Push(type_url, subscription.version, subscription.nonce, payload)

    def _subscribe(self, type_url: str, subscription: _Subscription, asked: Any, first: bool) -> None:
        if first and type_url in WILDCARD_TYPES and not asked:
            subscription.wildcard = subscription.legacy_wildcard = True
            return
        if subscription.legacy_wildcard and not asked:
            return
        if len(asked) == len(subscription.names) and subscription.names.issuperset(asked):
            return  # an ACK, nearly always
        names = frozenset(asked)
        self._bounds.check_names(len(names), names)
        wildcard = WILDCARD in names and type_url in WILDCARD_TYPES
        names -= {WILDCARD}
        added = names - subscription.names
        # What the client gave up it may have thrown away: it gets it anew if it asks again.
        if not wildcard:
            for name in [name for name in subscription.sent if name not in names]:
                del subscription.sent[name]
        subscription.owed &= names
        subscription.owed |= added
        if added or (wildcard and not subscription.wildcard):
            subscription.asked = True
        subscription.names, subscription.wildcard, subscription.legacy_wildcard = names, wildcard, False

    def _wants(self, type_url: str, snapshot: Snapshot) -> bool:
        subscription = self._types[type_url]
        if type_url not in api.TYPE_URLS and type_url not in snapshot.resources:
            return False  # not served here; the client's own timeout tells it so
        if not subscription.asked and not subscription.wildcard and not subscription.names:
            return False
        if subscription.asked:
            # Nobody asked for anything of a type of which there is no "all": an unsubscription sent first.
            return subscription.wildcard or bool(subscription.names)
        content = subscription.content(type_url, snapshot)
        if any(self._is_new(subscription, name, item) for name, item in content.items()):
            return True
        if type_url not in WILDCARD_TYPES:
            return False
        gone = subscription.sent.keys() - content.keys()
        return bool(gone) and not self._held_back(type_url, subscription, content, snapshot)

    def _is_new(self, subscription: _Subscription, name: str, item: Resource) -> bool:
        sent = subscription.sent.get(name)
        return sent is None or (sent is not item and sent.version != item.version) or name in subscription.owed

    def _held_back(
        self, type_url: str, subscription: _Subscription, content: Mapping[str, Resource], snapshot: Snapshot
    ) -> dict[str, Resource]:
        """What is to be deleted, but not before the client has taken the routes that no longer lead there."""
        if not is_target(type_url):
            return {}
        gone = subscription.sent.keys() - content.keys()
        if not gone:
            return {}
        for other, routing in self._types.items():
            if is_routing(other) and (not routing.settled or self._wants(other, snapshot)):
                return {name: subscription.sent[name] for name in gone}
        return {}

    def _warming(self, snapshot: Snapshot) -> bool:
        """Whether an Envoy has yet to warm clusters that new routes may lead to: it drops calls to others.

        Only a client that takes all clusters does that; one that rejected some of them is not waited for.
        """
        clusters = self._types.get(api.CLUSTER)
        if clusters is None or not clusters.wildcard:
            return False
        if not clusters.judged:
            return True
        endpoints = self._types.get(api.ENDPOINT)
        return clusters.settled and lacks_endpoints(snapshot, clusters.sent, endpoints.sent if endpoints else ())

    def _warm(self, clusters: _Subscription, after: Mapping[str, Resource]) -> None:
        """Has the endpoints of changed clusters sent anew: Envoy holds a changed cluster back until they come."""
        endpoints = self._types.get(api.ENDPOINT)
        if not clusters.wildcard or endpoints is None:
            return  # gRPC asks for what it needs
        for name, item in after.items():
            before = clusters.sent.get(name)
            if before is None or before.version == item.version or item.type_url != api.CLUSTER:
                continue
            if item.endpoint_name in endpoints.names:
                endpoints.owed.add(item.endpoint_name)
