"""The door of the REST API: a TLS listener of its own, by which everybody shows a certificate or is nobody.

It is a front as gRPC's is, with the same bounds on connections and handshakes; behind it, on a private socket, is HTTP.
"""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from meshwarden.controlplane.api.rest import openapi, route
from meshwarden.controlplane.api.rest.browser import Browsers
from meshwarden.controlplane.api.rest.direct import Calls, Handler
from meshwarden.controlplane.api.rest.http import Http
from meshwarden.controlplane.api.rest.site import Site
from meshwarden.controlplane.api.rest.transcode import Admit, Page, Transcoder
from meshwarden.controlplane.console import assets
from meshwarden.controlplane.console.assets import Asset
from meshwarden.sdk.mtls.front import Front

SOCKET = "rest.sock"


@asynccontextmanager
async def serving(
    path: Path,
    handlers: Mapping[str, Handler],
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    admit: Admit,
    browsers: Browsers,
    version: str,
) -> AsyncIterator[None]:
    """Serves what comes to a private socket, by a front, while the context lasts.

    Args:
        path: the socket.
        handlers: {method: handler} of all services.
        interceptors: what stands before them, the outermost first.
        admit: checks a caller before anything is read.
        browsers: makes sessions known to them.
        version: ours, for the document.
    """
    routes = route.load()
    served = {one.method for one in routes}
    calls = await Calls.behind({name: handlers[name] for name in served}, interceptors)
    document = functools.cache(lambda: openapi.text(routes, version))
    pages = {"/v1/openapi.json": Page("application/json", document)}
    http = Http(Transcoder(routes, calls, admit, pages, Site(_files), browsers).handle)
    server = await asyncio.start_unix_server(http.serve, path)
    try:
        yield
    finally:
        server.close()
        http.close()


def _files() -> Mapping[str, Asset]:
    """The files of all pages; they are read when one is asked for, and so is what brings them."""
    from meshwarden.controlplane.console import swagger

    return {**assets.load(), **swagger.load()}


async def listen(front: Front, host: str, port: int, context: Callable[[], ssl.SSLContext]) -> int:
    """Opens the door; returns the port, which is chosen if 0 is given.

    Raises:
        OSError: the address can't be listened on.
    """
    # Who says no protocol speaks the one that there was before protocols were said.
    return await front.serve_tls(host, port, context, protocols=("http/1.1", None))
