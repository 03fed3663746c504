"""The pages for browsers, beside the API: files that hold no data, for everybody; what they ask for is not."""

import asyncio
import functools
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from meshwarden.controlplane.api.rest.http import CLOSED, Exchange
from meshwarden.controlplane.api.rest.problem import HttpRefused
from meshwarden.controlplane.console.assets import Asset

HOME: Final = "/console/"
EXPLORER: Final = "/explorer/"
_MOVED: Final = {"/": HOME, "/console": HOME, "/explorer": EXPLORER}


class Site:
    """Answers what is asked for below its paths."""

    def __init__(self, load: Callable[[], Mapping[str, Asset]]) -> None:
        """Serves what `load` finds, {path: asset}; it is called once, on a thread, when something is asked for."""
        self._load = functools.cache(load)
        self._below = (HOME, EXPLORER)

    def has(self, path: str) -> bool:
        """Whether a path is a page's rather than the API's."""
        return path in _MOVED or path.startswith(self._below)

    async def answer(self, exchange: Exchange, path: str) -> None:
        """Answers with a file.

        Raises:
            HttpRefused: there is none, or it isn't asked for by GET or HEAD.
        """
        if exchange.verb not in ("GET", "HEAD"):
            text = f"{exchange.verb} is not for this path: it takes GET, HEAD"
            raise HttpRefused(HTTPStatus.METHOD_NOT_ALLOWED, text, headers=[("allow", "GET, HEAD")])
        if path in _MOVED:
            await exchange.answer(HTTPStatus.FOUND, b"", [("location", _MOVED[path]), CLOSED])
            return
        asset = (await asyncio.to_thread(self._load)).get(path)
        if asset is None:
            raise HttpRefused(
                HTTPStatus.NOT_FOUND, f"there is no such file; the console is at {HOME}, the explorer at {EXPLORER}"
            )
        headers = [*asset.headers, ("etag", asset.tag)]
        if asset.tag in exchange.headers.get("if-none-match", ""):
            await exchange.answer(HTTPStatus.NOT_MODIFIED, b"", headers)
        elif asset.small and "gzip" in exchange.headers.get("accept-encoding", ""):
            await exchange.answer(HTTPStatus.OK, asset.small, [*headers, ("content-encoding", "gzip")])
        else:
            await exchange.answer(HTTPStatus.OK, asset.body, headers)
