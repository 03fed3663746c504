"""Serves the X.509 profile of the SPIFFE Workload API; the JWT profile is disabled.

Source: SPIFFE Workload Endpoint §5.2 (header), §6 (errors), §7; Workload API §1 (profiles), §4.3 (streams carry full
state, at once and at each change), §5.2.1 (PermissionDenied for who has no identity).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc

from meshwarden.agents.attest import Attestor, Unidentified
from meshwarden.agents.credentials import CredentialMissing, Credentials
from meshwarden.agents.registry import Registry
from meshwarden.agents.workload import Workload
from meshwarden.agents.workload_api import schema
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid

_HEADER: Final = "workload.spiffe.io"
_FIRST_SVID_S: Final = 10.0
_Context = grpc.aio.ServicerContext


class WorkloadApi:
    """The service. Add it to a server with `add_to`."""

    def __init__(self, attestor: Attestor, registry: Registry, credentials: Credentials) -> None:
        """Serves what `credentials` holds to whom `attestor` knows."""
        self._attestor, self._registry, self._credentials = attestor, registry, credentials
        self._changed = asyncio.Event()
        credentials.listen(self._notify)
        registry.listen(self._notify)

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
            "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(self.refuse_jwt),
            "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(self.refuse_jwt),
            "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(self.refuse_jwt),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(schema.SERVICE, handlers),))

    async def fetch_x509_svid(self, _: object, context: _Context[Any, Any]) -> None:
        """Streams the caller's SVID with its key and bundle; ends with PERMISSION_DENIED when it has none."""
        await self._stream(context, _svid_response)

    async def fetch_x509_bundles(self, _: object, context: _Context[Any, Any]) -> None:
        """Streams the trust domain's roots to whoever has an identity."""
        await self._stream(context, lambda _, bundle: _bundle_response(bundle))

    async def refuse_jwt(self, _: object, context: _Context[Any, Any]) -> None:
        """Answers for the JWT profile, which is disabled."""
        await self._check_header(context)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the JWT profile is disabled")

    async def _stream(self, context: _Context[Any, Any], response: Callable[[X509Svid, Bundle], Any]) -> None:
        await self._check_header(context)
        workload = await self._identify(context)
        sent: tuple[X509Svid, Bundle] | None = None
        while True:
            changed = self._changed
            svid, bundle = self._credentials.svid(workload.id), self._credentials.bundle()
            if self._registry.workloads.get(workload.id) is not workload:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the workload's registration has ended")
            if svid is None:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the workload's certificate has ended")
                return
            if sent is None or sent[0] is not svid or sent[1] is not bundle:
                await self._confirm(context, workload)
                try:
                    await context.write(response(svid, bundle))
                except grpc.aio.InternalError:
                    return  # the caller has left, which is no error of ours
                sent = (svid, bundle)
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


def _svid_response(svid: X509Svid, bundle: Bundle) -> Any:
    response = schema.X509SVIDResponse()
    response.svids.add(
        spiffe_id=str(svid.spiffe_id),
        x509_svid=b"".join(svid.chain_der()),
        x509_svid_key=svid.key_der(),
        bundle=b"".join(bundle.ders),
    )
    return response


def _bundle_response(bundle: Bundle) -> Any:
    return schema.X509BundlesResponse(bundles={f"spiffe://{bundle.trust_domain}": b"".join(bundle.ders)})
