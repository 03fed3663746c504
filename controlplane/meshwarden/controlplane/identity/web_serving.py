"""What the REST listener shows: the control plane's own certificate to programs, one by a name they know to browsers.

Programs say `controlplane.<trust domain>` when they connect and get the certificate of `ServingIdentity`. Whoever says
another name, or none, gets the browsers' certificate: files of the configuration, read again when they change, or one
of the same SPIFFE ID that our own authority signs for names of this listener.

Source: RFC 6066 §3 (SNI); CA/Browser Forum Baseline Requirements §7.1.2.7.12 (names stand in the SAN).
"""

import asyncio
import ssl
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.csr import make_csr
from meshwarden.certs.error import CertsError
from meshwarden.certs.issue import LeafTemplate, control_plane_dns_name, region_dns_name
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.audit.port import AuditError, AuditLog
from meshwarden.controlplane.identity.serving import LIFE, ServingIdentity
from meshwarden.sdk.mtls.tls import server_context

LOOK_S: Final = 5.0

log = structlog.get_logger()


class WebCertificateUnusable(OSError):
    """The files of the browsers' certificate can't be read, or are no pair."""


class WebServing:
    """The TLS of the REST listener. `run` follows renewals and changed files."""

    def __init__(
        self,
        serving: ServingIdentity,
        authority: Authority,
        trust_domain: str,
        region: str,
        *,
        audit: AuditLog,
        clock: Callable[[], datetime],
        names: Sequence[str],
        files: tuple[Path, Path] | None = None,
    ) -> None:
        """Has nothing for browsers until `start`.

        Args:
            serving: the control plane's own certificate, and what callers must lead to.
            authority: signs the browsers', where there are no files.
            trust_domain: ours.
            region: ours.
            audit: learns of each certificate.
            clock: the present, aware.
            names: by which browsers find the listener, DNS names in lower case.
            files: the chain to show to browsers and its key, PEM; None to have it signed by `authority`.
        """
        self._serving, self._authority, self._audit, self._clock = serving, authority, audit, clock
        own = (control_plane_dns_name(trust_domain), region_dns_name(trust_domain, region))
        self._of_mesh: Collection[str] = frozenset(own)
        self._template = LeafTemplate(SpiffeId.control_plane(trust_domain, region), LIFE, (*own, *names))
        self._files = files
        # The chain and its key, PEM; None where nobody signs them.
        self._pair: tuple[bytes, bytes] | None = None
        self._issued_beside: X509Svid | None = None
        self._root: x509.Certificate | None = None
        self._base: ssl.SSLContext | None = None
        self._web: ssl.SSLContext | None = None

    @property
    def is_of_mesh(self) -> bool:
        """Whether the mesh's roots prove us to browsers."""
        return self._files is None

    def root(self) -> x509.Certificate | None:
        """Returns what browsers may trust to know us, and nobody by another name; None if there is no such thing."""
        return self._root

    def context(self) -> ssl.SSLContext:
        """Returns the TLS context of the present certificates, which is asked at each handshake."""
        base = self._serving.web_context()
        if base is not self._base:
            self._web = self._made()
            base.sni_callback = self._choose
            self._base = base
        return base

    async def start(self) -> None:
        """Gets the browsers' certificate.

        Raises:
            WebCertificateUnusable: the files of the configuration can't be used.
        """
        if self._files is not None:
            self._read(self._files)
        else:
            await self._issue()

    async def run(self) -> None:
        """Shows the newest certificates until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._files is None:
                if self._serving.svid() is not self._issued_beside:
                    await self._issue()
                continue
            try:
                self._read(self._files)
            except WebCertificateUnusable as error:
                log.error("browsers are shown the old certificate", reason=str(error))

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if self._web is not None and (name is None or name.lower() not in self._of_mesh):
            tls.context = self._web

    def _read(self, files: tuple[Path, Path]) -> None:
        try:
            pair = files[0].read_bytes(), files[1].read_bytes()
        except OSError as error:
            raise WebCertificateUnusable(f"[rest] {error.filename}: {error.strerror}") from None
        if pair == self._pair:
            return
        before, self._pair = self._pair, pair
        try:
            self._web = self._made()
        except OSError as error:  # ssl.SSLError is one
            self._pair = before
            raise WebCertificateUnusable(f"[rest] {files[0]}: no certificate with its key: {error}") from None

    async def _issue(self) -> None:
        """Has one signed beside the control plane's present one; where that fails, shows that one."""
        beside, key = self._serving.svid(), new_key()
        try:
            chain = await self._authority.sign(self._template, key.public_key(), self._clock(), make_csr(key))
            self._root = await self._authority.browser_root(self._template.dns_names)
            svid = X509Svid.of(chain, key)
            names = list(self._template.dns_names)
            await self._audit.record(
                "controlplane.issue_web", spiffe_id=str(svid.spiffe_id), serial=svid.serial, names=names
            )
        except (CertsError, AuditError) as error:
            log.warning("browsers are shown the control plane's own certificate", reason=str(error))
            self._pair = None
        else:
            self._pair = svid.chain_pem(), svid.key_pem()
        self._issued_beside = beside
        self._web = self._made()

    def _made(self) -> ssl.SSLContext | None:
        """The browsers' half, by the roots of this moment.

        Raises:
            ssl.SSLError: it is no pair.
        """
        if self._pair is None:
            return None
        roots = b"".join(bundle.pem() for bundle in self._serving.bundles().values())
        return server_context(*self._pair, roots, protocol="http/1.1")
