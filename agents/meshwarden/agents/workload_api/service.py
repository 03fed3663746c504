"""Serves the SPIFFE Workload API: the X.509 profile here, the JWT profile by `workload_api.jwt`.

Source: SPIFFE Workload Endpoint §5.2 (header), §6 (errors), §7; Workload API §1 (profiles), §4.3 (streams carry full
state, at once and at each change), §5.2.1 (PermissionDenied for who has no identity).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc

from meshwarden.agents.identity.credentials import CredentialMissing, Credentials
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.workload.attest import Attestor, Unidentified
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.workload_api import schema
from meshwarden.agents.workload_api.jwt import JwtProfile, JwtRefused, bundles_response
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid

_HEADER: Final = "workload.spiffe.io"
_FIRST_SVID_S: Final = 10.0
_Context = grpc.aio.ServicerContext


class WorkloadApi:
    """The service. Add it to a server with `add_to`."""

    def __init__(
        self, attestor: Attestor, registry: Registry, credentials: Credentials, trust: Trust, jwt: JwtProfile
    ) -> None:
        """Serves what `credentials`, `trust` and `jwt` hold to whom `attestor` knows."""
        self._attestor, self._registry, self._credentials = attestor, registry, credentials
        self._trust, self._jwt = trust, jwt
        self._changed = asyncio.Event()
        credentials.listen(self._notify)
        registry.listen(self._notify)
        trust.listen(self._notify)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves all methods of the standard on `server`."""
        handlers: dict[str, Any] = {
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
                self.fetch_x509_svid, schema.X509SVIDRequest.FromString, schema.X509SVIDResponse.SerializeToString
            ),
            "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(
                self.fetch_x509_bundles,
                schema.X509BundlesRequest.FromString,
                schema.X509BundlesResponse.SerializeToString,
            ),
            "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(
                self.fetch_jwt_svid, schema.JWTSVIDRequest.FromString, schema.JWTSVIDResponse.SerializeToString
            ),
            "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(
                self.fetch_jwt_bundles,
                schema.JWTBundlesRequest.FromString,
                schema.JWTBundlesResponse.SerializeToString,
            ),
            "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(
                self.validate_jwt_svid,
                schema.ValidateJWTSVIDRequest.FromString,
                schema.ValidateJWTSVIDResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(schema.SERVICE, handlers),))

    async def fetch_x509_svid(self, _: object, context: _Context[Any, Any]) -> None:
        """Streams the caller's SVID with its key and bundle; ends with PERMISSION_DENIED when it has none."""
        await self._stream(context, self._identity, _svid_response)

    async def fetch_x509_bundles(self, _: object, context: _Context[Any, Any]) -> None:
        """Streams the roots of each trust domain to whoever has an identity."""
        await self._stream(context, lambda svid: self._identity(svid)[1:], _bundles_response)

    async def fetch_jwt_svid(self, request: Any, context: _Context[Any, Any]) -> Any:
        """Returns a token for the caller; ends with PERMISSION_DENIED when it has no identity."""
        await self._check_header(context)
        workload = await self._identify(context)
        try:
            response = await self._jwt.fetch(workload, request)
        except JwtRefused as error:
            await context.abort(error.status, str(error))
        await self._confirm(context, workload)
        return response

    async def fetch_jwt_bundles(self, _: object, context: _Context[Any, Any]) -> None:
        """Streams the keys that tokens are judged by to whoever has an identity."""
        await self._stream(context, lambda _: (self._jwt.bundles(),), bundles_response)

    async def validate_jwt_svid(self, request: Any, context: _Context[Any, Any]) -> Any:
        """Judges a token for a caller that has an identity."""
        await self._check_header(context)
        await self._identify(context)
        try:
            return self._jwt.validate(request)
        except JwtRefused as error:
            await context.abort(error.status, str(error))

    def _identity(self, svid: X509Svid) -> tuple[X509Svid, Bundle, Mapping[str, Bundle]]:
        return svid, self._credentials.bundle(), self._trust.foreign()

    async def _stream(
        self,
        context: _Context[Any, Any],
        state: Callable[[X509Svid], tuple[Any, ...]],
        response: Callable[..., Any],
    ) -> None:
        """Writes `response(*state(SVID))` at once and whenever an object of the state is another one."""
        await self._check_header(context)
        workload = await self._identify(context)
        sent: tuple[Any, ...] = ()
        while True:
            changed, svid = self._changed, self._credentials.svid(workload.id)
            if self._registry.workloads.get(workload.id) is not workload:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the workload's registration has ended")
            if svid is None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the workload's certificate has ended")
                return
            now = state(svid)
            if not sent or any(this is not that for this, that in zip(now, sent, strict=True)):
                await self._confirm(context, workload)
                try:
                    await context.write(response(*now))
                except grpc.aio.InternalError:
                    return  # the caller has left, which is no error of ours
                sent = now
                continue  # it may have changed while a slow reader took this one
            await changed.wait()

    async def _identify(self, context: _Context[Any, Any]) -> Workload:
        try:
            workload = await self._attestor.workload(context)
            await self._credentials.ensure(workload, _FIRST_SVID_S)
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except CredentialMissing as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return workload

    async def _confirm(self, context: _Context[Any, Any], workload: Workload) -> None:
        try:
            await self._attestor.confirm(context, workload)
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

    async def _check_header(self, context: _Context[Any, Any]) -> None:
        values = [value for key, value in context.invocation_metadata() or () if key == _HEADER]
        if values != ["true"]:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"security header missing: send `{_HEADER}: true`")

    def _notify(self) -> None:
        # Who waits holds the old event; whoever comes next waits for the next change.
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def _svid_response(svid: X509Svid, bundle: Bundle, foreign: Mapping[str, Bundle]) -> Any:
    response = schema.X509SVIDResponse(federated_bundles=_ders(*foreign.values()))
    response.svids.add(
        spiffe_id=str(svid.spiffe_id),
        x509_svid=b"".join(svid.chain_der()),
        x509_svid_key=svid.key_der(),
        bundle=b"".join(bundle.ders),
    )
    return response


def _bundles_response(bundle: Bundle, foreign: Mapping[str, Bundle]) -> Any:
    return schema.X509BundlesResponse(bundles=_ders(bundle, *foreign.values()))


def _ders(*bundles: Bundle) -> dict[str, bytes]:
    return {f"spiffe://{bundle.trust_domain}": b"".join(bundle.ders) for bundle in bundles}
