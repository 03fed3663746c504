"""What proves our identities, for who isn't of the mesh: over HTTPS, for everybody, and nothing else.

    /bundle.json                        our bundle, for other trust domains
    /keys                               the keys of our JWT-SVIDs, for OpenID Connect
    /.well-known/openid-configuration   where they are, and who the issuer is: if there is one

Source: SPIFFE Federation §5 (endpoints and their profiles); OpenID Connect Discovery 1.0 §3, §4.
"""

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from meshwarden.certs import jose
from meshwarden.certs.error import CertsError
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.store.port import StoreError
from meshwarden.sdk.mtls.tls import load_identity, web_context
from meshwarden.sdk.scrape import Page

LOOK_S: Final = 10.0
JSON: Final = "application/json"

log = structlog.get_logger()


class EndpointError(OSError):
    """The endpoint has no certificate to show."""


class SpiffeEndpoint:
    """The pages, and the TLS that they are served with. `run` follows renewals of the certificate."""

    def __init__(
        self,
        document: BundleDocument,
        svid: Callable[[], X509Svid | None],
        *,
        issuer: str = "",
        files: tuple[Path, Path] | None = None,
    ) -> None:
        """Serves a document.

        Args:
            document: our bundle.
            svid: with https_spiffe, the certificate to show; there must be one when `tls` is first asked for.
            issuer: the issuer of our JWT-SVIDs, "https://oidc.mesh.example"; empty for none.
            files: with https_web, the chain to show and its key, PEM.
        """
        self._document, self._svid, self._issuer, self._files = document, svid, issuer, files
        self._tls: ssl.SSLContext | None = None
        self._shown: object = None

    @property
    def tls(self) -> ssl.SSLContext:
        """What it is served with.

        Raises:
            EndpointError: there is no certificate, or it can't be used.
        """
        if self._tls is None:
            context = web_context()
            self._load(context)
            self._tls = context
        return self._tls

    async def run(self) -> None:
        """Shows the newest certificate until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._tls is not None:
                    self._load(self._tls)
            except EndpointError as error:
                log.error("the SPIFFE endpoint shows its old certificate", reason=str(error))

    def find(self, path: str) -> Page | None:
        """The page of a path."""
        if path == "/bundle.json":
            return self._bundle
        if path == "/keys":
            return self._keys
        if path == "/.well-known/openid-configuration" and self._issuer:
            return self._configuration
        return None

    async def _bundle(self, _: str) -> tuple[str, bytes]:
        try:
            return JSON, await self._document.read()
        except (CertsError, StoreError) as error:
            log.error("our bundle can't be told", reason=str(error))
            raise OSError("the bundle can't be told now") from None

    async def _keys(self, _: str) -> tuple[str, bytes]:
        # As `use` says to who knows nothing of SPIFFE.
        more = {"use": "sig", "alg": "ES256"}
        keys = [{**jose.jwk(key), "kid": kid, **more} for kid, key in sorted(self._document.jwt.keys.items())]
        return JSON, json.dumps({"keys": keys}).encode()

    async def _configuration(self, _: str) -> tuple[str, bytes]:
        issuer = self._issuer
        said: dict[str, Any] = {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/keys",
            # Nobody logs in here; the standard wants the field all the same.
            "authorization_endpoint": "",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }
        return JSON, json.dumps(said).encode()

    def _load(self, context: ssl.SSLContext) -> None:
        if self._files is not None:
            chain_pem, key_pem = map(_read, self._files)
            present: object = (chain_pem, key_pem)
        else:
            svid = self._svid()
            if svid is None:
                raise EndpointError("[spiffe_endpoint]: the control plane has no certificate yet")
            present, chain_pem, key_pem = svid.serial, svid.chain_pem(), svid.key_pem()
        if present == self._shown:
            return
        try:
            load_identity(context, chain_pem, key_pem)
        except OSError as error:  # ssl.SSLError is one
            where = self._files[0] if self._files is not None else "https_spiffe"
            raise EndpointError(f"[spiffe_endpoint] {where}: no certificate with its key: {error}") from None
        self._shown = present


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EndpointError(f"[spiffe_endpoint] {path}: {error.strerror}") from None
