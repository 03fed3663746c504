"""The state-of-the-world variant of one ADS stream, without any I/O.

A request goes in (`request`) and a verdict may come out; `wanted` says which types have something to send out of a
snapshot, `push` makes that response. The caller decides when, so a slow stream skips the snapshots between.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
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

    __slots__ = (
        "asked",
        "good",
        "legacy_wildcard",
        "names",
        "nonce",
        "owed",
        "refused",
        "seen",
        "sent",
        "unanswered",
        "wildcard",
    )

    def __init__(self, type_url: str) -> None:
        self.names: frozenset[str] = frozenset()
        self.wildcard = False
        self.legacy_wildcard = False  # all, asked for by an empty list, which names replace
        self.nonce = ""
        self.sent: dict[str, Resource] = {}
        self.asked = True  # an answer is due although nothing may have changed
        self.owed: set[str] = set()  # names to send although they are unchanged
        self.unanswered = Unanswered()
        self.refused = Refused(type_url)
        self.seen: Mapping[str, Resource] | None = None  # what there was when nothing was left to say
        self.good: dict[str, Resource] = {}  # what it took last, of a type of which all is said each time

    @property
    def settled(self) -> bool:
        """Whether the client has taken all that it was sent."""
        return not self.unanswered and not self.refused

    def all_of(self, after: Mapping[str, Resource]) -> dict[str, Resource | None]:
        """What to send of a type of which all is said each time.

        None stands for what was taken before, in place of what was refused and has not changed since.
        """
        return {name: None if self.refused.holds(item) and name in self.good else item for name, item in after.items()}

    def new_of(self, content: Mapping[str, Resource]) -> dict[str, Resource | None]:
        """What to send of a type of which only changes need to be said."""
        new = {name for name, item in content.items() if self.is_new(name, item)}
        new |= self.refused.among(new) & content.keys()
        return {name: content[name] for name in sorted(new)}

    def is_new(self, name: str, item: Resource) -> bool:
        """Whether the client is to hear of a resource."""
        sent = self.sent.get(name)
        return sent is None or (sent is not item and sent.version != item.version) or name in self.owed

    def judge(self, type_url: str, version: str, pushed: Mapping[str, Resource | None], reason: str | None) -> None:
        """Takes the client's word of a push: an ACK, or a NACK for a reason."""
        bad: set[str] = set()
        if reason is None:
            self.refused.take(name for name, item in pushed.items() if item is not None)
        else:
            bad = self.refused.refuse(pushed, version, reason)
            self.owed |= self.refused.forget([name for name in pushed if name not in self.sent])
        if type_url not in WILDCARD_TYPES:
            return
        for name, item in pushed.items():
            if name in bad and item is None:
                self.good.pop(name, None)
            elif name not in bad and item is not None:
                self.good[name] = item
        for name in self.good.keys() - self.sent.keys():
            del self.good[name]

    def forget(self, names: Iterable[str]) -> None:
        """What the client gave up it may have thrown away: it gets it anew if it asks again."""
        names, self.seen = list(names), None
        for name in names:
            self.sent.pop(name, None)
            self.good.pop(name, None)
        self.owed |= self.refused.forget(names)

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
            subscription = self._types[type_url] = _Subscription(type_url)
        nonce: str = message.response_nonce
        # A nonce of an earlier stream is no answer to anything here. Some clients lose theirs: that is no ACK, but
        # the names count. Those in an answer to an older push don't: the answer to the newest is still to come.
        is_newest = first or not nonce or nonce == subscription.nonce
        if is_newest:
            self._subscribe(type_url, subscription, message.resource_names, first)
        push = subscription.unanswered.take(nonce)
        if push is None:
            return None  # only names changed; gRPC then says again what it said of the last push
        if is_newest:
            subscription.unanswered.clear()  # who answers to the newest has skipped those before
        # The only sign of a NACK: its version may equal that of an earlier ACK.
        reason = (message.error_detail.message or UNSAID) if message.HasField("error_detail") else None
        subscription.judge(type_url, *push, reason)
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
        for type_url, subscription in self._types.items():
            if subscription.refused and type_url not in WILDCARD_TYPES:  # of the others deletions are sent
                subscription.forget(subscription.refused.missing(snapshot.named(type_url)))
        wanted = [type_url for type_url in self._types if self._wants(type_url, snapshot)]
        if any(map(is_routing, wanted)) and self._warming(snapshot):
            wanted = [type_url for type_url in wanted if not is_routing(type_url)]
        return in_order(wanted)

    def push(self, type_url: str, snapshot: Snapshot) -> Push:
        """The response of a wanted type; from now on the client is held to have it."""
        subscription = self._types[type_url]
        subscription.seen = None
        content = subscription.content(type_url, snapshot)
        if type_url in WILDCARD_TYPES:  # what such a response leaves out is deleted
            after = {**self._held_back(type_url, subscription, content, snapshot), **content}
            subscription.refused.forget(subscription.sent.keys() - after.keys())  # the others are said again anyway
            entries = subscription.all_of(after)
            payload = [(item or subscription.good[name]).sotw_entry for name, item in entries.items()]
            self._warm(subscription, after)
        else:  # here nothing is deleted by leaving it out, so only what is new goes out
            after, entries = dict(content), subscription.new_of(content)
            payload = [content[name].sotw_entry for name in entries]
        self._count += 1
        subscription.nonce, version = f"{self._count:x}", snapshot.version(type_url)
        subscription.sent, subscription.asked = after, False
        subscription.unanswered.put(subscription.nonce, version, entries)
        subscription.owed.clear()
        head = delimited(1, version.encode()) + delimited(4, type_url.encode())
        head += delimited(5, subscription.nonce.encode())
        return Push(type_url, version, subscription.nonce, b"".join([head, *payload]))

    def _subscribe(self, type_url: str, subscription: _Subscription, asked: Any, first: bool) -> None:
        if first and type_url in WILDCARD_TYPES and not asked:
            subscription.wildcard = subscription.legacy_wildcard = True
            return
        if subscription.legacy_wildcard and not asked:
            return
        names = frozenset(asked)
        if names == subscription.names and not subscription.wildcard:
            return  # an ACK, nearly always
        self._bounds.check_names(len(names), names)
        wildcard = WILDCARD in names and type_url in WILDCARD_TYPES
        names -= {WILDCARD}
        subscription.seen = None
        added = names - subscription.names
        if not wildcard:
            subscription.forget([name for name in subscription.sent if name not in names])
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
        known = snapshot.named(type_url)
        if known is subscription.seen and not subscription.owed:
            return False
        content = subscription.content(type_url, snapshot)
        if any(subscription.is_new(name, item) for name, item in content.items()):
            return True
        gone = subscription.sent.keys() - content.keys() if type_url in WILDCARD_TYPES else set()
        if not gone:
            subscription.seen = known
        return bool(gone) and not self._held_back(type_url, subscription, content, snapshot)

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
        if clusters.unanswered:
            return True
        endpoints = self._types.get(api.ENDPOINT)
        has = endpoints.sent if endpoints else ()
        return lacks_endpoints(snapshot, clusters.sent, clusters.refused, has)

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
