"""The REST API of a control plane: the same services behind the same checks, by a door of their own."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.controlplane.api.rest import door
from meshwarden.controlplane.api.rest.browser import Browsers
from meshwarden.controlplane.api.rest.direct import Registry
from meshwarden.controlplane.api.server import Servicers, add
from meshwarden.controlplane.api.session import Place
from meshwarden.controlplane.app.identity import Identity
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.place import listening, parse_address
from meshwarden.sdk.mtls.connection import Connection
from meshwarden.sdk.mtls.front import Front, OnRefused
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.scrape import url_of


class Doors:
    """Several fronts as one: a connection's name is of one of them alone."""

    def __init__(self, *fronts: Front | Browsers | None) -> None:
        """Knows the connections of these; None is none."""
        self._fronts = [front for front in fronts if front is not None]

    def find(self, peer: str) -> Connection | None:
        """The connection of a call, by its `context.peer()`; None if it came through no front."""
        return next((found for front in self._fronts if (found := front.find(peer)) is not None), None)


class Rest:
    """The door, which is shut until `open`; `front` and `browsers` are None if the configuration has none."""

    def __init__(self, config: Config, identity: Identity, on_refused: OnRefused) -> None:
        """Is the door that `config` asks for, and shows the certificates of `identity`."""
        self._config, self._web = config, identity.web
        self._port = 0
        self._path = config.inner_dir / door.SOCKET
        self.front = Front(self._path, on_refused=on_refused) if config.rest is not None else None
        self.browsers = Browsers(identity.sessions, self.front) if self.front is not None else None

    @asynccontextmanager
    async def behind(
        self, servicers: Servicers, peers: PeerInterceptor, interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> AsyncIterator[None]:
        """Has all services answer behind the door, while the context lasts."""
        if self.front is None or self.browsers is None:
            yield
            return
        registry = Registry()
        add(servicers, registry)
        self._path.unlink(missing_ok=True)
        version = version_of("meshwarden")
        serving = door.serving(self._path, registry.handlers, interceptors, peers.admit, self.browsers, version)
        async with self.front, serving:
            yield

    async def open(self) -> Mapping[str, str]:
        """Opens it; returns its URL by name.

        Raises:
            CannotListen: the address can't be listened on.
        """
        if self.front is None or self._config.rest is None or self._web is None:
            return {}
        host, port = parse_address(self._config.rest.listen)
        with listening("rest.listen", self._config.rest.listen):
            port = await door.listen(self.front, host, port, self._web.context)
        self._port = port
        return {"rest_url": url_of(host, port, "").replace("http:", "https:", 1)}

    def place(self) -> Place | None:
        """Where browsers find it; None if nowhere."""
        if self._config.rest is None or self._web is None or not self._port:
            return None
        host = self._config.rest.web_host()
        address = f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"
        root = self._web.root()
        pem = root.public_bytes(Encoding.PEM).decode() if root is not None else ""
        return Place(address, self._web.is_of_mesh, pem)
