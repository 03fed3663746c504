"""The JWT profile of the SPIFFE Workload API.

Source: SPIFFE Workload API §6; JWT-SVID. A token that isn't good is INVALID_ARGUMENT, as SPIRE has it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf import struct_pb2

from meshwarden.agents.identity.jwt_svids import JwtSvids, NoToken
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.workload_api import schema
from meshwarden.certs.clock import Clock
from meshwarden.certs.deny import DenyList
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import MAX_SIZE_BYTES, InvalidJwtSvid, JwtSvid, check_audience, validate
from meshwarden.certs.spiffe_id import SpiffeId

_MAX_AUDIENCE_BYTES: Final = 4096


class JwtRefused(Exception):
    """A request of the JWT profile is refused."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


class JwtProfile:
    """Answers for a workload that is known already."""

    def __init__(self, svids: JwtSvids, trust: Trust, deny_list: Callable[[], DenyList], clock: Clock) -> None:
        """Gives what `svids` has, and judges by `trust` and by who is denied at present."""
        self._svids, self._trust, self._deny_list, self._clock = svids, trust, deny_list, clock

    async def fetch(self, workload: Workload, request: Any) -> Any:
        """The workload's token for the audience that it asks for: `JWTSVIDResponse`.

        Raises:
            JwtRefused: no token may have that audience, it asks for another's, it is denied, or there is none.
        """
        try:
            # In one order: the same audience is the same token.
            audience = tuple(sorted(check_audience(tuple(dict.fromkeys(request.audience)))))
        except InvalidJwtSvid as error:
            raise JwtRefused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        if request.spiffe_id and request.spiffe_id != str(workload.spiffe_id):
            raise JwtRefused(grpc.StatusCode.PERMISSION_DENIED, f"you are {workload.spiffe_id} and no other")
        self._check_denied(workload.spiffe_id)
        try:
            token = await self._svids.fetch(workload, audience)
        except NoToken as error:
            raise JwtRefused(error.status, str(error)) from None
        response = schema.JWTSVIDResponse()
        response.svids.add(spiffe_id=str(workload.spiffe_id), svid=token)
        return response

    def bundles(self) -> Mapping[str, JwtBundle]:
        """What tokens are judged by; the same object until it changes."""
        return self._trust.jwt()

    def validate(self, request: Any) -> Any:
        """What a token proves to an audience: `ValidateJWTSVIDResponse`.

        Raises:
            JwtRefused: nothing.
        """
        if not request.audience or len(request.audience) > _MAX_AUDIENCE_BYTES:
            raise JwtRefused(grpc.StatusCode.INVALID_ARGUMENT, "audience: say who is asking")
        if not request.svid or len(request.svid) > MAX_SIZE_BYTES:
            raise JwtRefused(grpc.StatusCode.INVALID_ARGUMENT, f"svid: give a token of at most {MAX_SIZE_BYTES} bytes")
        try:
            svid = validate(request.svid, request.audience, self._trust.jwt(), self._clock())
            claims = _struct(svid)
        except InvalidJwtSvid as error:
            raise JwtRefused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        self._check_denied(svid.spiffe_id, svid.node_serial)
        response = schema.ValidateJWTSVIDResponse(spiffe_id=str(svid.spiffe_id))
        # Of the schema's own pool: its Struct is another class than protobuf's.
        response.claims.ParseFromString(claims.SerializeToString())
        return response

    def _check_denied(self, spiffe_id: SpiffeId, node_serial: int = 0) -> None:
        denied, now_s = self._deny_list(), self._clock().timestamp()
        reason = denied.names(str(spiffe_id), 0, now_s)
        if not reason and denied.of_serial(str(spiffe_id), node_serial, now_s):
            reason = "the node of this token was banned"
        if reason:
            raise JwtRefused(grpc.StatusCode.PERMISSION_DENIED, f"{spiffe_id}: {reason}")


def bundles_response(bundles: Mapping[str, JwtBundle]) -> Any:
    """`JWTBundlesResponse`: a JWK Set for each trust domain."""
    return schema.JWTBundlesResponse(bundles={f"spiffe://{name}": bundle.jwks() for name, bundle in bundles.items()})


def _struct(svid: JwtSvid) -> struct_pb2.Struct:
    claims = struct_pb2.Struct()
    try:
        claims.update(svid.claims)
        claims.SerializeToString()
    except (ValueError, OverflowError, RecursionError):
        raise InvalidJwtSvid(f"{svid.spiffe_id}: the token has a claim that can't be told") from None
    return claims
