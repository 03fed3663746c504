"""Requests of HTTP as calls of RPCs, and their ends as answers.

Who calls is checked before a body is read; after that a call passes all that a call of gRPC passes. What is asked of a
browser beside: that a page of ours has it change something, and no other's.
"""

import asyncio
import re
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import anyio
from google.protobuf.message import Message

from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.api.rest import bind, encode, problem
from meshwarden.controlplane.api.rest.browser import BY_CODE, Browsers, check_origin, check_page
from meshwarden.controlplane.api.rest.cookie import parse
from meshwarden.controlplane.api.rest.direct import Calls, DirectContext
from meshwarden.controlplane.api.rest.events import EventStream, until_left
from meshwarden.controlplane.api.rest.http import CLOSED, GONE, Exchange
from meshwarden.controlplane.api.rest.json_tree import MAX_BYTES
from meshwarden.controlplane.api.rest.problem import Aborted, HttpRefused
from meshwarden.controlplane.api.rest.route import Route, Router
from meshwarden.controlplane.api.rest.site import Site
from meshwarden.controlplane.api.validation import Misshapen
from meshwarden.controlplane.identity.browser_session import BrowserSession
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import record_of
from meshwarden.sdk.mtls.peer import Refused
from meshwarden.v1.resources_pb2 import Resource

Admit = Callable[[str, str], VerifiedPeer | None]
"""Takes a connection's name and a method; returns who calls, or raises `Refused`."""
STREAMS_PER_CALLER: Final = 16
STREAMS_PER_SESSION: Final = 8
MAX_STREAMS: Final = 512
SCHEMA: Final = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
"""Who may read the schema by gRPC may read what is made of it here."""
_PASSED_ON: Final = ("traceparent", "tracestate", "user-agent")
_TAG: Final = re.compile(r'"([0-9]{1,19})"')
_CURSOR: Final = re.compile(r"([A-Za-z0-9-]{1,64}):([0-9]{1,19})")
_JSON: Final = ("content-type", "application/json")
# No scheme of the registry fits: one shows a certificate when the connection is made.
_CHALLENGE: Final = ("www-authenticate", 'ClientCertificate realm="meshwarden"')


@dataclass(frozen=True)
class Page:
    """Something that is the same for everybody who may read the schema."""

    content_type: str
    # It may take its time, on a thread.
    body: Callable[[], bytes]
    policy: tuple[str, str] = CLOSED


class Transcoder:
    """Answers requests: `handle` is for `Http`."""

    def __init__(
        self,
        routes: Sequence[Route],
        calls: Calls,
        admit: Admit,
        pages: Mapping[str, Page],
        site: Site,
        browsers: Browsers,
    ) -> None:
        """Puts it together.

        Args:
            routes: which RPC a verb and a path mean.
            calls: makes calls.
            admit: checks who calls before anything is read; `calls` check it again.
            pages: {path: page}, beside the routes.
            site: the files of pages for browsers, which everybody may have.
            browsers: makes sessions known to `admit` and `calls`.
        """
        self._router, self._calls, self._admit, self._pages = Router(routes), calls, admit, pages
        self._site, self._browsers = site, browsers
        self._streams: Counter[str] = Counter()
        self._open = 0
        self._shared = encode.Shared()

    async def handle(self, exchange: Exchange) -> None:
        """Answers a request.

        Raises:
            HttpRefused: it means nothing here.
        """
        path, _, query = exchange.target.partition("?")
        if self._site.has(path):
            await self._site.answer(exchange, path)
            return
        page = self._pages.get(path)
        if page is not None:
            with self._browsers.entered(exchange):
                await self._show(exchange, page)
            return
        if not path.startswith("/"):
            raise HttpRefused(HTTPStatus.BAD_REQUEST, "ask for a path, which begins with a slash")
        verbs, values = self._router.find(path[1:].split("/"))
        if not verbs:
            raise HttpRefused(HTTPStatus.NOT_FOUND, "there is no such path; GET /v1/openapi.json has all there are")
        route = verbs.get("GET" if exchange.verb == "HEAD" else exchange.verb)
        has_head = "GET" in verbs and not verbs["GET"].streams
        allowed = ", ".join(sorted({*verbs, "OPTIONS", *(["HEAD"] if has_head else [])}))
        if exchange.verb == "OPTIONS":
            await exchange.answer(HTTPStatus.NO_CONTENT, b"", [("allow", allowed), CLOSED])
            return
        if route is None or (route.streams and exchange.verb == "HEAD"):
            text = f"{exchange.verb} is not for this path: it takes {allowed}"
            raise HttpRefused(HTTPStatus.METHOD_NOT_ALLOWED, text, headers=[("allow", allowed)])
        exchange.also = route.deprecation
        check_origin(exchange)
        if route.method in BY_CODE:
            check_page(exchange)
            await self._answer(exchange, route, values, query)
            return
        with self._browsers.entered(exchange) as session:
            if session is not None:
                check_page(exchange)
            await self._answer(exchange, route, values, query, session)

    async def _answer(
        self,
        exchange: Exchange,
        route: Route,
        values: Sequence[str],
        query: str,
        session: BrowserSession | None = None,
    ) -> None:
        caller = self._admitted(exchange, route.method)
        request = await _read(exchange, route, values, query)
        if route.streams:
            names = [(str(caller.spiffe_id) if caller is not None else "", STREAMS_PER_CALLER)]
            if session is not None:
                names.append((f"session {session.number}", STREAMS_PER_SESSION))
            await self._stream(exchange, route, request, names)
        else:
            await self._call(exchange, route, request)

    async def _show(self, exchange: Exchange, page: Page) -> None:
        if exchange.verb not in ("GET", "HEAD"):
            text = f"{exchange.verb} is not for this path: it takes GET, HEAD"
            raise HttpRefused(HTTPStatus.METHOD_NOT_ALLOWED, text, headers=[("allow", "GET, HEAD")])
        self._admitted(exchange, SCHEMA)
        body = await asyncio.to_thread(page.body)
        await exchange.answer(HTTPStatus.OK, body, [("content-type", page.content_type), page.policy])

    def _admitted(self, exchange: Exchange, method: str) -> VerifiedPeer | None:
        try:
            return self._admit(exchange.peer, method)
        except Refused as refused:
            status = problem.STATUS.get(refused.status, HTTPStatus.FORBIDDEN)
            headers = [_CHALLENGE] if status is HTTPStatus.UNAUTHORIZED else []
            text = refused.message
            if headers and "cookie" in exchange.headers:
                text = f"{text}, or a session that has ended: `meshwarden console` opens another"
            raise HttpRefused(status, text, headers=headers) from None

    async def _call(self, exchange: Exchange, route: Route, request: Message | Misshapen) -> None:
        context = _context(exchange)
        if route.method in BY_CODE:
            context.cookie = parse(exchange.headers.get("cookie", "")) or ""
        try:
            answer = await self._calls.unary(route.method, request, context)
        except Aborted as aborted:
            await _tell(exchange, route, request, aborted)
            return
        headers = [_JSON, CLOSED, *context.headers]
        if isinstance(answer, Resource):
            tag = f'"{record_of(answer).revision}"'
            headers.append(("etag", tag))
            known = exchange.headers.get("if-none-match", "")
            if tag in known or known.strip() == "*":
                await exchange.answer(HTTPStatus.NOT_MODIFIED, b"", headers)
                return
        await exchange.answer(HTTPStatus.OK, encode.to_json(answer), headers)

    async def _stream(
        self, exchange: Exchange, route: Route, request: Message | Misshapen, owners: Sequence[tuple[str, int]]
    ) -> None:
        """Answers with a stream; `owners` are those whose it is, and how many each may have."""
        if self._open >= MAX_STREAMS or any(self._streams[name] >= most for name, most in owners):
            text = (
                f"as many streams are open as may be: {STREAMS_PER_SESSION} of one session, {STREAMS_PER_CALLER} of "
                f"one caller, {MAX_STREAMS} of all"
            )
            raise HttpRefused(HTTPStatus.TOO_MANY_REQUESTS, text, headers=[("retry-after", "10")])
        self._open += 1
        self._streams.update(name for name, _ in owners)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(until_left, exchange, group.cancel_scope)
                group.start_soon(self._events, exchange, route, request, group.cancel_scope)
        finally:
            self._open -= 1
            self._streams -= Counter(name for name, _ in owners)

    async def _events(
        self, exchange: Exchange, route: Route, request: Message | Misshapen, scope: anyio.CancelScope
    ) -> None:
        """Sends a stream until it ends, and ends the scope."""
        stream = EventStream(exchange, self._shared)
        ended: Aborted | None = None
        try:
            async with anyio.create_task_group() as beating:
                beating.start_soon(_beat, stream, scope)
                try:
                    await self._calls.stream(route.method, request, _context(exchange, stream.write))
                except Aborted as aborted:
                    ended = aborted
                beating.cancel_scope.cancel()
            if ended is not None and not exchange.has_begun:
                await _tell(exchange, route, request, ended)
            else:
                await stream.end(_problem(exchange, route, request, ended) if ended is not None else None)
        except GONE:
            pass
        scope.cancel()


async def _beat(stream: EventStream, scope: anyio.CancelScope) -> None:
    try:
        await stream.beat()
    except GONE:
        scope.cancel()


async def _read(exchange: Exchange, route: Route, values: Sequence[str], query: str) -> Message | Misshapen:
    """Reads what is asked for.

    Raises:
        HttpRefused: it can't be read.
    """
    body = await exchange.body(MAX_BYTES)
    kind = exchange.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if route.body and kind != "application/json":
        raise HttpRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
    try:
        decoded = [urllib.parse.unquote(value, errors="strict") for value in values]
        parameters = urllib.parse.parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=bind.MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        raise HttpRefused(HTTPStatus.BAD_REQUEST, "the path or the query is not UTF-8") from None
    except ValueError:
        raise HttpRefused(HTTPStatus.BAD_REQUEST, f"the query has more than {bind.MAX_PARAMETERS} parameters") from None
    conditions = _conditions(exchange, route)
    if any(name.startswith("after.") for name in conditions):
        # A browser that connects anew asks for the same path, and says in a header how far it has come.
        parameters = [(name, text) for name, text in parameters if not name.startswith("after.")]
    return bind.bind(route, decoded, parameters, conditions, body or None)


def _conditions(exchange: Exchange, route: Route) -> dict[str, str]:
    """What headers say for fields of the request.

    Raises:
        HttpRefused: they can't be read.
    """
    fields: Any = route.request.DESCRIPTOR.fields_by_name
    found: dict[str, str] = {}
    if "if_revision" in fields:
        match, none = exchange.headers.get("if-match"), exchange.headers.get("if-none-match")
        if match is not None:
            tag = _TAG.fullmatch(match)
            if tag is None:
                raise _wrong_header("If-Match", 'must be one ETag as it was given, "7" with its quotes')
            found[bind.IF_REVISION] = tag[1]
        elif none is not None:
            if none != "*":
                raise _wrong_header("If-None-Match", 'must be "*" here: store it only if there is none yet')
            found[bind.IF_REVISION] = "0"
    last = exchange.headers.get("last-event-id")
    if last and "after" in fields:
        cursor = _CURSOR.fullmatch(last)
        if cursor is None:
            raise _wrong_header("Last-Event-ID", "must be the id of an event as it was given")
        found |= {"after.incarnation": cursor[1], "after.revision": cursor[2]}
    return found


def _wrong_header(name: str, text: str) -> HttpRefused:
    fault = FieldFault(f"header.{name}", text)
    return HttpRefused(HTTPStatus.BAD_REQUEST, f"{name}: {text}", [fault])


def _context(exchange: Exchange, write: Any = None) -> DirectContext:
    metadata = [(name, exchange.headers[name]) for name in _PASSED_ON if name in exchange.headers]
    return DirectContext(exchange.peer, metadata, write)


async def _tell(exchange: Exchange, route: Route, request: Message | Misshapen, aborted: Aborted) -> None:
    status, told, headers = _told(exchange, route, request, aborted)
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append(_CHALLENGE)
    await exchange.refuse(told, headers)


def _problem(exchange: Exchange, route: Route, request: Message | Misshapen, aborted: Aborted) -> bytes:
    return encode.dump(problem.to_json(_told(exchange, route, request, aborted)[1]))


def _told(exchange: Exchange, route: Route, request: Message | Misshapen, aborted: Aborted) -> Any:
    def place(field: str) -> str:
        # What was no message is told by its place in the request already.
        return field if isinstance(request, Misshapen) else bind.place(route, field)

    is_conditional = "if-match" in exchange.headers or "if-none-match" in exchange.headers
    return problem.of_call(aborted, place, is_conditional=is_conditional)
