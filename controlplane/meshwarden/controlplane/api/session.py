"""SessionService: browsers act for operators by a cookie, which stands for the operator's certificate."""

import contextlib
import hashlib
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.api.rest.cookie import CLEARED, cookie
from meshwarden.controlplane.api.rest.direct import DirectContext
from meshwarden.controlplane.identity.authorize import Denied, authorize
from meshwarden.controlplane.identity.browser_session import BrowserSession, BrowserSessions
from meshwarden.controlplane.identity.operators import Operators
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import session_service_pb2 as v1
from meshwarden.v1 import session_service_pb2_grpc
from meshwarden.v1.operator_service_pb2 import OperatorRole as Role

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_OURS: Final = "/meshwarden.v1."
SERVICE: Final = f"{_OURS}SessionService/"


class Place(NamedTuple):
    """Where browsers find us.

    Attributes:
        address: "localhost:7445".
        is_of_mesh: whether the mesh's roots prove it to them.
        root: what they may trust in place of these, PEM; empty if there is none.
    """

    address: str
    is_of_mesh: bool
    root: str = ""


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Answers operators, and browsers that have a code."""

    def __init__(
        self,
        sessions: BrowserSessions,
        operators: Operators,
        trust_domain: str,
        region: str,
        place: Callable[[], Place | None],
    ) -> None:
        """Puts it together; `place` says where browsers find us, None if nowhere."""
        self._sessions, self._operators, self._place = sessions, operators, place
        self._trust_domain, self._region = trust_domain, region

    async def CreateSessionCode(self, request: v1.CreateSessionCodeRequest, context: Context) -> v1.SessionCode:
        caller = _authorized("CreateSessionCode")
        connection, place = peer.current_connection(), self._place()
        if place is None or connection is None:
            raise Denied(
                "no browser finds this control plane: its configuration has no [rest]",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        text, until = await self._sessions.code(caller, connection.chain_der, connection.remote)
        answer = v1.SessionCode(
            code=text, address=place.address, mesh_certificate=place.is_of_mesh, browser_root=place.root
        )
        answer.expire_time.FromDatetime(until)
        return answer

    async def PreviewSession(self, request: v1.PreviewSessionRequest, context: Context) -> v1.SessionPreview:
        browser, address = _browser(context)
        code = self._sessions.look(request.code, address)
        told = self._told(code.owner, self._sessions.until(code), by_cookie=True)
        digest = hashlib.sha256(code.chain_der[0]).hexdigest().upper()
        answer = v1.SessionPreview(session=told, certificate_sha256=":".join(re.findall("..", digest)))
        answer.code_expire_time.FromDatetime(code.until)
        before = self._sessions.find(browser.cookie)
        if before is not None and not before.over():
            # Somebody who operates no more has nothing to lose by it.
            with contextlib.suppress(Denied):
                answer.replaced.CopyFrom(self._told(before.owner, before.until, by_cookie=True))
        return answer

    async def CreateSession(self, request: v1.CreateSessionRequest, context: Context) -> v1.Session:
        browser, address = _browser(context)
        text, session = await self._sessions.begin(request.code, address)
        told = self._told(session.owner, session.until, by_cookie=True)
        if (before := self._sessions.find(browser.cookie)) is not None:
            await self._sessions.end(before)
        browser.headers.append(("set-cookie", cookie(text)))
        return told

    async def GetSession(self, request: v1.GetSessionRequest, context: Context) -> v1.Session:
        caller, connection = _authorized("GetSession"), peer.current_connection()
        session = connection.session if connection is not None else None
        if isinstance(session, BrowserSession):
            return self._told(session.owner, session.until, by_cookie=True)
        return self._told(str(caller.spiffe_id), caller.not_after, by_cookie=False)

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: Context) -> v1.DeleteSessionResponse:
        if isinstance(context, DirectContext):
            context.headers.append(("set-cookie", CLEARED))
            if (session := self._sessions.find(context.cookie)) is not None:
                await self._sessions.end(session)
        return v1.DeleteSessionResponse()

    def _told(self, owner: str, until: datetime, *, by_cookie: bool) -> v1.Session:
        """Who an operator is and how far it goes.

        Raises:
            Denied: it operates this mesh no more.
        """
        identity = SpiffeId.parse(owner)
        role = self._operators.role(identity)
        methods = self._operators.methods(identity, by_session=by_cookie)
        answer = v1.Session(
            name=identity.operator or "",
            tenant=identity.tenant or "",
            role=Role.Value(role.name),
            spiffe_id=owner,
            by_cookie=by_cookie,
            trust_domain=self._trust_domain,
            region=self._region,
            methods=[one.removeprefix(_OURS).replace("/", ".") for one in methods if one.startswith(_OURS)],
        )
        answer.expire_time.FromDatetime(until)
        return answer


def _browser(context: Context) -> tuple[DirectContext, str]:
    """A browser's call, and the address that it comes from.

    Raises:
        Denied: somebody else calls.
    """
    connection = peer.current_connection()
    if not isinstance(context, DirectContext) or connection is None:
        raise Denied("a session is a browser's: POST /v1/session", grpc.StatusCode.UNIMPLEMENTED)
    return context, connection.remote


def _authorized(method: str) -> VerifiedPeer:
    """Who is calling, and may.

    Raises:
        Denied: it may not.
    """
    caller = peer.current()
    identity = caller.spiffe_id if caller is not None else None
    authorize(identity, SERVICE + method, identity.tenant if identity is not None else None)
    assert caller is not None  # noqa: S101  # the table lets nobody in who shows nothing
    return caller
