"""What else proves identities, beside the roots of our own certificates: as the control plane has said last.

It is kept on disk, so that tokens are judged while the control plane is away.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from meshwarden.agents.cache import Cache
from meshwarden.certs.bundle import InvalidBundle
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
        body = cache.load(_ITEM)
        if body is not None:
            try:
                self._read(node_pb.TrustBundles.FromString(body))
            except (InvalidBundle, DecodeError) as error:
                cache.set_aside(_ITEM, str(error))

    def jwt(self) -> Mapping[str, JwtBundle]:
        """`{trust domain: JWT bundle}`; the same object until it changes."""
        return self._jwt

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    def take(self, message: node_pb.TrustBundles) -> None:
        """Takes what to trust from now on; what can't be used changes nothing."""
        before = self._jwt
        try:
            self._read(message)
        except InvalidBundle as error:
            _log.error("bundles refused", reason=str(error))
            return
        if self._jwt != before:
            self._cache.keep(_ITEM, message.SerializeToString())
            for callback in self._listeners:
                callback()

    def _read(self, message: node_pb.TrustBundles) -> None:
        own = JwtBundle.from_proto(self._trust_domain, message.jwt_keys)
        self._jwt = MappingProxyType({self._trust_domain: own})
