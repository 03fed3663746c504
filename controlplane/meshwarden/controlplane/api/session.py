"""SessionService: browsers act for operators by a cookie, which stands for the operator's certificate."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.api.operator import refuse_session
from meshwarden.controlplane.api.rest.cookie import CLEARED, cookie
from meshwarden.controlplane.api.rest.direct import DirectContext
from meshwarden.controlplane.identity.authorize import Denied, authorize
from meshwarden.controlplane.identity.browser_session import BrowserSession, BrowserSessions
from meshwarden.controlplane.identity.operators import OperatorRole, Operators
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import session_service_pb2 as v1
from meshwarden.v1 import session_service_pb2_grpc
from meshwarden.v1.operator_service_pb2 import OperatorRole as Role

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: Final = "/meshwarden.v1.SessionService/"
Place = tuple[str, bool]
"""Where browsers find us, "localhost:7445", and whether the mesh's roots prove it to them."""


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
        refuse_session("CreateSessionCode")
        connection, place = peer.current_connection(), self._place()
        if place is None or connection is None:
            raise Denied(
                "no browser finds this control plane: its configuration has no [rest]",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        text, until = await self._sessions.code(caller, connection.chain_der, connection.remote)
        answer = v1.SessionCode(code=text, address=place[0], mesh_certificate=place[1])
        answer.expire_time.FromDatetime(until)
        return answer

    async def CreateSession(self, request: v1.CreateSessionRequest, context: Context) -> v1.Session:
        connection = peer.current_connection()
        if not isinstance(context, DirectContext) or connection is None:
            raise Denied("a session is a browser's: POST /v1/session", grpc.StatusCode.UNIMPLEMENTED)
        text, session = await self._sessions.begin(request.code, connection.remote)
        if (before := self._sessions.find(context.cookie)) is not None:
            await self._sessions.end(before)
        context.headers.append(("set-cookie", cookie(text)))
        return self._told(SpiffeId.parse(session.owner), session)

    async def GetSession(self, request: v1.GetSessionRequest, context: Context) -> v1.Session:
        caller, connection = _authorized("GetSession"), peer.current_connection()
        session = connection.session if connection is not None else None
        if isinstance(session, BrowserSession):
            return self._told(caller.spiffe_id, session)
        answer = self._told(caller.spiffe_id)
        answer.expire_time.FromDatetime(caller.not_after)
        return answer

    async def DeleteSession(self, request: v1.DeleteSessionRequest, context: Context) -> v1.DeleteSessionResponse:
        if isinstance(context, DirectContext):
            context.headers.append(("set-cookie", CLEARED))
            if (session := self._sessions.find(context.cookie)) is not None:
                await self._sessions.end(session)
        return v1.DeleteSessionResponse()

    def _told(self, identity: SpiffeId, session: BrowserSession | None = None) -> v1.Session:
        role: OperatorRole = self._operators.role(identity)
        answer = v1.Session(
            name=identity.operator or "",
            tenant=identity.tenant or "",
            role=Role.Value(role.name),
            spiffe_id=str(identity),
            by_cookie=session is not None,
            trust_domain=self._trust_domain,
            region=self._region,
        )
        if session is not None:
            answer.expire_time.FromDatetime(session.until)
        return answer


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
