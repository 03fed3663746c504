"""What the node agent has said last: who the program is, whom to trust, what to enforce."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.deny import DenyList
from meshwarden.certs.error import CertsError
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.v1 import node_service_pb2, workload_service_pb2

NOBODY: Final = DenyList()
"""The list of a node that was told to refuse nobody."""


@dataclass(frozen=True)
class Config:
    """What the agent has said last.

    Attributes:
        spiffe_id: who the program is.
        bundles: {trust domain: bundle} of the program's own; the same objects as long as nothing in them changes.
        limits: for the program's own server; those from before as long as an agent that has started again says nothing
            of them, for calls would be limited by nothing, and shares lost, until it does.
        revision: of the store, that all this is of.
        credentials: the directory with tls.crt, tls.key and ca.crt.
        names: {name that may be dialled: "<tenant>/<service>"}.
        trace_ratio: how many of the traces that begin here are to be recorded, from 0 to 1.
        deny_list: who is refused though its certificate is good; the same object as long as nothing in it changes.
        access: who may call the program's own server; the same object as long as nothing in it changes, None as long
            as the agent has not said.
        federated: `bundles`, and those of other trust domains: each the proof of its own identities alone. Whoever
            verifies by it tells `PeerVerifier` which is `home`.
    """

    spiffe_id: SpiffeId
    bundles: Mapping[str, Bundle]
    limits: node_service_pb2.ServerLimits
    revision: int
    credentials: Path
    names: Mapping[str, str]
    trace_ratio: float = 1.0
    deny_list: DenyList = NOBODY
    federated: Mapping[str, Bundle] = field(default_factory=dict)
    access: node_service_pb2.ServerAccess | None = None

    @property
    def roots_pem(self) -> bytes:
        """All roots of `federated`: for a handshake alone, after which a `PeerVerifier` holds each call to its own."""
        return b"".join(bundle.pem() for bundle in self.federated.values())

    @property
    def service(self) -> str:
        """The program's service, "<tenant>/<service>"."""
        return f"{self.spiffe_id.tenant}/{self.spiffe_id.service}"


def read(message: workload_service_pb2.WorkloadConfig, before: Config | None) -> Config:
    """Reads a configuration; whatever hasn't changed stays the same object, since caches hang on it.

    Raises:
        CertsError: the identity, the bundle or the deny list is none, or they are of two trust domains.
    """
    spiffe_id = SpiffeId.parse(message.spiffe_id)
    if spiffe_id.tenant is None or spiffe_id.service is None:
        raise CertsError(f"{spiffe_id}: not the identity of a workload")
    bundle = Bundle.from_proto(message.bundle)
    if bundle.trust_domain != spiffe_id.trust_domain:
        raise CertsError(f"{spiffe_id}: the bundle is that of {bundle.trust_domain!r}")
    bundles: Mapping[str, Bundle] = MappingProxyType({bundle.trust_domain: bundle})
    if before is not None and before.bundles == bundles:
        bundles = before.bundles
    federated = _federated(bundles, message, before)
    limits = node_service_pb2.ServerLimits()
    limits.CopyFrom(message.limits if message.HasField("limits") or before is None else before.limits)
    names = MappingProxyType(dict(message.names))
    ratio = min(max(message.trace_ratio, 0.0), 1.0) if message.HasField("trace_ratio") else 1.0
    deny_list = DenyList.from_proto(message.deny_list)
    if before is not None and before.deny_list == deny_list:
        deny_list = before.deny_list
    credentials = Path(message.credential_directory)
    access = _access(message, before)
    return Config(spiffe_id, bundles, limits, message.revision, credentials, names, ratio, deny_list, federated, access)


def _access(
    message: workload_service_pb2.WorkloadConfig, before: Config | None
) -> node_service_pb2.ServerAccess | None:
    if not message.HasField("access"):
        return None
    if before is not None and before.access == message.access:
        return before.access
    access = node_service_pb2.ServerAccess()
    access.CopyFrom(message.access)
    return access


def _federated(
    own: Mapping[str, Bundle], message: workload_service_pb2.WorkloadConfig, before: Config | None
) -> Mapping[str, Bundle]:
    """All trust domains' bundles; each that hasn't changed stays the same object.

    Raises:
        CertsError: a bundle is none, or there are two of one trust domain.
    """
    known = before.federated if before is not None else {}
    found = dict(own)
    for said in message.foreign:
        if said.trust_domain in found:
            raise CertsError(f"two bundles of {said.trust_domain[:255]!r}")
        bundle = Bundle.from_proto(said)
        found[bundle.trust_domain] = known[bundle.trust_domain] if known.get(bundle.trust_domain) == bundle else bundle
    return known if known == found else MappingProxyType(found)
