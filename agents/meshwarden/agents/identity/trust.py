"""What else proves identities, beside the roots of our own certificates: as the control plane has said last.

It is kept on disk, so that tokens are judged while the control plane is away.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from meshwarden.agents.cache import Cache
from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.v1 import node_service_pb2 as node_pb

_log = structlog.get_logger()
_ITEM: Final = "trust"


class Trust:
    """Bundles by trust domain."""

    def __init__(self, cache: Cache, trust_domain: str) -> None:
        """Starts from what the cache holds."""
        self._cache, self._trust_domain = cache, trust_domain
        self._listeners: list[Callable[[], None]] = []
        self._jwt: Mapping[str, JwtBundle] = {trust_domain: JwtBundle(trust_domain)}
        self._tainted: frozenset[str] = frozenset()
        self._foreign: Mapping[str, Bundle] = MappingProxyType({})
        body = cache.load(_ITEM)
        if body is not None:
            try:
                self._read(node_pb.TrustBundles.FromString(body))
            except (InvalidBundle, DecodeError) as error:
                cache.set_aside(_ITEM, str(error))

    def jwt(self) -> Mapping[str, JwtBundle]:
        """`{trust domain: JWT bundle}`; the same object until it changes."""
        return self._jwt

    def own_jwt_keys(self) -> Iterable[str]:
        """The ids of our own trust domain's JWT keys."""
        return self._jwt[self._trust_domain].keys

    def foreign(self) -> Mapping[str, Bundle]:
        """`{trust domain: bundle}` of other trust domains' certificates; the same object until it changes."""
        return self._foreign

    def forsaken(self, kid: str) -> bool:
        """Whether what a key of our own has signed isn't to be given any more: it is tainted, or revoked."""
        return kid in self._tainted or kid not in self._jwt[self._trust_domain].keys

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    def take(self, message: node_pb.TrustBundles) -> None:
        """Takes what to trust from now on; what can't be used changes nothing."""
        before = self._jwt, self._tainted, self._foreign
        try:
            self._read(message)
        except InvalidBundle as error:
            _log.error("bundles refused", reason=str(error))
            return
        if (self._jwt, self._tainted, self._foreign) != before:
            self._cache.keep(_ITEM, message.SerializeToString())
            for callback in self._listeners:
                callback()

    def _read(self, message: node_pb.TrustBundles) -> None:
        jwt = {self._trust_domain: JwtBundle.from_proto(self._trust_domain, message.jwt_keys)}
        foreign: dict[str, Bundle] = {}
        for item in message.foreign:
            if item.trust_domain in jwt:
                raise InvalidBundle(f"two bundles of {item.trust_domain[:255]!r}")
            jwt[item.trust_domain] = JwtBundle.from_proto(item.trust_domain, item.jwt_keys)
            if item.roots:
                bundle = node_pb.Bundle(trust_domain=item.trust_domain, roots=item.roots)
                foreign[item.trust_domain] = Bundle.from_proto(bundle)
        self._tainted = frozenset(key.kid for key in message.jwt_keys if key.tainted)
        # What hasn't changed stays the same object, since caches hang on it.
        if jwt != self._jwt:
            self._jwt = MappingProxyType(jwt)
        if foreign != self._foreign:
            self._foreign = MappingProxyType(foreign)
