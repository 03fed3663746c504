"""The node's own identity: obtained for a proof, renewed by the present certificate, kept on disk.

    <state_dir>/identity/tls.crt  tls.key.sealed  ca.crt  node.json     published together, 0600

The key is encrypted as the cache is (`certs.seal`), bound to its certificate. Where no key for that can be kept it is
in the clear, `tls.key`, as earlier agents wrote it; that is encrypted when it can be.

Errors, all `IdentityError` (agents.proof.port): `ProofRefused` says what to do; `WrongIdentity` says that the control
plane answered what it must not; `Banned` that this node is to have nothing, and to clear away what it has.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.agents.channel import ControlPlane, open_channel
from meshwarden.agents.proof.port import IdentityError, Proof
from meshwarden.certs import files
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import make_csr
from meshwarden.certs.error import UNREADABLE, CertsError
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.seal import Seal, Unsealed
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.sdk.mtls.refusal import BANNED, refusal_of
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import node_service_pb2_grpc as node_grpc

_log = structlog.get_logger()
_FORMAT: Final = 1
SEALED: Final = "tls.key.sealed"
CLEAR: Final = "tls.key"
_TIMEOUT_S: Final = 15.0
# What may pass by itself; any other answer to a token stays what it is, however often one asks.
_TRANSIENT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    }
)


class ProofRefused(IdentityError):
    """The control plane does not take the proof."""


class Banned(IdentityError):
    """The control plane has banned this node."""


class WrongIdentity(IdentityError):
    """The control plane answered with an identity that is not this node's."""


@dataclass(frozen=True)
class Identity:
    """Who the node is at present."""

    svid: X509Svid
    bundle: Bundle
    region: str


class NodeIdentity:
    """Holds the node's certificate. Its key is made here and stays here."""

    def __init__(
        self,
        node: str,
        control_plane: ControlPlane,
        directory: Path,
        roots: Bundle,
        clock: Callable[[], datetime],
        rng: random.Random,
        seals: Sequence[Seal] = (),
    ) -> None:
        """Reads what an earlier run has left in `directory`.

        Args:
            node: the name that the identity must bear.
            control_plane: whom to ask.
            directory: where the identity is kept, of ours alone.
            roots: what to trust before there is an identity.
            clock: the present, aware, UTC.
            rng: spreads renewals.
            seals: what may have encrypted the key, that first which does; none leaves it in the clear.
        """
        self._seals = tuple(seals)
        self._node, self._control_plane, self._directory = node, control_plane, directory
        self._roots, self._clock, self._rng = roots, clock, rng
        self._pending: ec.EllipticCurvePrivateKey | None = None
        self._listeners: list[Callable[[], None]] = []
        self._is_current = False
        self.refusal = ""
        """Why the disk does not take the identity; empty if it does."""
        self._present = self._load()

    @property
    def present(self) -> Identity:
        """Who the node is.

        Raises:
            IdentityError: it is nobody yet.
        """
        if self._present is None:
            raise IdentityError(f"node {self._node} has no identity yet")
        return self._present

    def is_good(self) -> bool:
        """Whether the node can prove who it is, now."""
        return self._present is not None and self._present.svid.not_after > self._clock()

    def is_somebody(self) -> bool:
        """Whether the node has an identity, be it one that has ended."""
        return self._present is not None

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    def renewal(self) -> datetime:
        """When to renew next."""
        svid = self.present.svid
        return renew_at(svid.not_before, svid.not_after, self._rng)

    def set_bundle(self, bundle: Bundle) -> None:
        """Takes what to trust from now on."""
        if self._present is not None and bundle.roots != self._present.bundle.roots:
            self._take(Identity(self._present.svid, bundle, self._present.region))

    async def attest(self, proof: Proof) -> None:
        """Obtains the identity for a proof.

        A try that got no answer keeps its key: the same token with the same key gets the same answer for a minute.

        Raises:
            IdentityError: there is no proof, or it is refused, or the answer is not for us.
            ProofAway: there is no proof at present; try again.
            grpc.aio.AioRpcError: the control plane is away or busy; try again.
        """
        request = await proof.request()
        self._pending = self._pending or new_key()
        request.csr = make_csr(self._pending)
        async with open_channel(self._control_plane, self._roots, None) as channel:
            try:
                answer = await self._converse(node_grpc.NodeServiceStub(channel), request, proof)
            except grpc.aio.AioRpcError as error:
                if error.code() in _TRANSIENT:
                    raise
                raise await self._refused(error, proof) from None
        bundle = self._bundle_of(answer.bundle)
        svid = self._checked(answer.chain, self._pending, bundle)
        if answer.node != self._node:
            raise WrongIdentity(
                f"what was proved is that this is node {answer.node}, but this agent is configured as {self._node}"
            )
        self._pending = None
        self._take(Identity(svid, bundle, answer.region))
        _log.info("node attested", node=self._node, region=answer.region, serial=svid.serial)
        await proof.end()

    @staticmethod
    async def _converse(stub: Any, request: node_pb.AttestRequest, proof: Proof) -> node_pb.AttestResponse:
        """Asks, and answers a challenge if that is what comes first."""
        answer: node_pb.AttestResponse = await stub.Attest(request, timeout=_TIMEOUT_S)
        if answer.HasField("challenge"):
            request.answer.state = answer.challenge.state
            request.answer.answer = await proof.answer(answer.challenge.data, request.csr)
            answer = await stub.Attest(request, timeout=_TIMEOUT_S)
        return answer

    async def _refused(self, error: grpc.aio.AioRpcError, proof: Proof) -> IdentityError:
        await proof.end()
        if refusal_of(error.trailing_metadata()) == BANNED:
            return banned(str(error.details()))
        return ProofRefused(f"the control plane refuses ({error.details()}): {proof.fix(self._node)}")

    async def renew(self, channel: grpc.aio.Channel) -> None:
        """Obtains the next certificate by the present one, which `channel` shows.

        Raises:
            WrongIdentity: the answer is not for us.
            grpc.aio.AioRpcError: the control plane is away, or refuses.
        """
        key = new_key()
        stub = node_grpc.NodeServiceStub(channel)
        answer = await stub.Renew(node_pb.RenewRequest(csr=make_csr(key)), timeout=_TIMEOUT_S)
        present = self.present
        svid = self._checked(answer.chain, key, present.bundle)
        self._take(Identity(svid, present.bundle, present.region))
        _log.info("node certificate renewed", serial=svid.serial, not_after=svid.not_after.isoformat())

    def _checked(self, chain_der: Iterable[bytes], key: ec.EllipticCurvePrivateKey, bundle: Bundle) -> X509Svid:
        try:
            svid = X509Svid.of([x509.load_der_x509_certificate(der) for der in chain_der], key)
            verify_chain(svid.chain_der(), {bundle.trust_domain: bundle}, self._clock())
        except (CertsError, *UNREADABLE) as error:
            raise WrongIdentity(f"the control plane's answer cannot be used: {error}") from None
        if svid.spiffe_id.node != self._node or svid.spiffe_id.trust_domain != bundle.trust_domain:
            raise WrongIdentity(f"the control plane answered with {svid.spiffe_id}, but this is node {self._node}")
        return svid

    def _bundle_of(self, message: node_pb.Bundle) -> Bundle:
        try:
            bundle = Bundle.from_proto(message)
        except CertsError as error:
            raise WrongIdentity(f"the control plane's answer cannot be used: {error}") from None
        if bundle.trust_domain != self._control_plane.trust_domain:
            raise WrongIdentity(
                f"the control plane is of trust domain {bundle.trust_domain}, but this agent is configured for "
                f"{self._control_plane.trust_domain}"
            )
        return bundle

    # -- on disk

    def save_rest(self) -> None:
        """Tries again to save what the disk has refused."""
        if self._present is not None and self.refusal:
            self._save(self._present)

    def _take(self, identity: Identity) -> None:
        self._present = identity
        self._save(identity)
        for callback in self._listeners:
            callback()

    def _save(self, identity: Identity) -> None:
        about = {"format": _FORMAT, "node": self._node, "region": identity.region, "revision": identity.bundle.revision}
        chain, key = identity.svid.chain_pem(), identity.svid.key_pem()
        content = {
            "tls.crt": chain,
            **({SEALED: self._seals[0].close(key, _context(chain))} if self._seals else {CLEAR: key}),
            "ca.crt": identity.bundle.pem(),
            "node.json": json.dumps(about).encode(),
        }
        try:
            files.publish(self._directory, content)
            self.refusal = ""
        except OSError as error:
            if not self.refusal:
                _log.error("node identity not saved; an agent that starts again may need a token", reason=str(error))
            self.refusal = str(error)

    def _load(self) -> Identity | None:
        try:
            (chain, key, roots, about_json), is_sealed = self._read()
        except OSError:
            return None
        try:
            if is_sealed:
                key = self._open(key, chain)
            about = json.loads(about_json)
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}; this agent reads {_FORMAT}")
            bundle = Bundle.parse_pem(self._control_plane.trust_domain, roots, about["revision"])
            svid = X509Svid.load(chain, key)
            if svid.spiffe_id.node != self._node or svid.spiffe_id.trust_domain != bundle.trust_domain:
                raise ValueError(f"it is {svid.spiffe_id}'s")
            found = Identity(svid, bundle, str(about["region"]))
            if self._seals and not (is_sealed and self._is_current):
                self._save(found)
            return found
        except (Unsealed, CertsError, ValueError, KeyError, TypeError) as error:
            _log.warning("node identity set aside", directory=str(self._directory), reason=str(error))
            self._directory.rename(
                self._directory.with_name(f"{self._directory.name}.aside-{self._clock():%Y%m%d%H%M%S}")
            )
            return None

    def _read(self) -> tuple[tuple[bytes, ...], bool]:
        """Reads what is there; says whether its key is encrypted."""
        try:
            return files.read(self._directory, "tls.crt", SEALED, "ca.crt", "node.json"), True
        except FileNotFoundError:
            return files.read(self._directory, "tls.crt", CLEAR, "ca.crt", "node.json"), False

    def _open(self, sealed: bytes, chain: bytes) -> bytes:
        for number, seal in enumerate(self._seals):
            try:
                key = seal.open(sealed, _context(chain))
            except Unsealed:
                continue
            self._is_current = number == 0
            return key
        raise Unsealed("its key is encrypted under another key than the one of this machine")


def _context(chain: bytes) -> bytes:
    return b"meshwarden node key\n" + chain


def banned(details: str) -> Banned:
    """What ends an agent whose node is banned."""
    return Banned(
        f"{details}. Its identity, its cache and its workloads' certificates were removed from this machine. Once an "
        "operator has taken the ban back (`meshwarden node unban`), start the agent again; it has to attest anew"
    )
