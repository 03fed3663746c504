"""The REST API of a control plane: the same services behind the same checks, by a door of their own."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of

import grpc
import grpc.aio

from meshwarden.controlplane.api.rest import door
from meshwarden.controlplane.api.rest.direct import Registry
from meshwarden.controlplane.api.server import Servicers, add
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.identity.serving import ServingIdentity
from meshwarden.controlplane.place import listening, parse_address
from meshwarden.sdk.mtls.connection import Connection
from meshwarden.sdk.mtls.front import Front, OnRefused
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.scrape import url_of


class Doors:
    """Several fronts as one: a connection's name is of one of them alone."""

    def __init__(self, *fronts: Front | None) -> None:
        """Knows the connections of these; None is none."""
        self._fronts = [front for front in fronts if front is not None]

    def find(self, peer: str) -> Connection | None:
        """The connection of a call, by its `context.peer()`; None if it came through no front."""
        return next((found for front in self._fronts if (found := front.find(peer)) is not None), None)


class Rest:
    """The door, which is shut until `open`; `front` is None if the configuration has none."""

    def __init__(self, config: Config, serving: ServingIdentity, on_refused: OnRefused) -> None:
        """Is the door that `config` asks for, and shows the certificate of `serving`."""
        self._config, self._serving = config, serving
        self._path = config.inner_dir / door.SOCKET
        self.front = Front(self._path, on_refused=on_refused) if config.rest is not None else None

    @asynccontextmanager
    async def behind(
        self, servicers: Servicers, peers: PeerInterceptor, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> AsyncIterator[None]:
        """Has all services answer behind the door, while the context lasts."""
        if self.front is None:
            yield
            return
        registry = Registry()
        add(servicers, registry)
        self._path.unlink(missing_ok=True)
        version = version_of("meshwarden")
        async with self.front, door.serving(self._path, registry.handlers, interceptors, peers.admit, version):
            yield

    async def open(self) -> Mapping[str, str]:
        """Opens it; returns its URL by name.

        Raises:
            CannotListen: the address can't be listened on.
        """
        if self.front is None or self._config.rest is None:
            return {}
        host, port = parse_address(self._config.rest.listen)
        with listening("rest.listen", self._config.rest.listen):
            port = await door.listen(self.front, host, port, self._serving.web_context)
        return {"rest_url": url_of(host, port, "").replace("http:", "https:", 1)}
