"""Which roots and JWT keys this node trusts by now, and which roots its certificates lead to: changes wait for it."""

from collections.abc import Callable, Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.identity.node import NodeIdentity
from meshwarden.agents.report.way import Answers
from meshwarden.agents.workload.registry import Registry
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid
from meshwarden.v1 import node_service_pb2 as node_pb

# gRPC looks once a second whether its files have changed (`bootstrap`), and is given time for a second look.
SETTLE_S: Final = 2.5
_MAX_JWT_KEYS: Final = 256


class RootAck:
    """What to acknowledge of the roots."""

    def __init__(
        self,
        identity: NodeIdentity,
        registry: Registry,
        credentials: Credentials,
        now_s: Callable[[], float],
        jwt_keys: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Acknowledges nothing yet.

        Args:
            identity: the node's.
            registry: knows the workloads.
            credentials: theirs.
            now_s: a monotonic clock.
            jwt_keys: the ids of the trust domain's JWT keys, as the node has them: tokens are judged by these.
        """
        self._jwt_keys = jwt_keys
        self._identity, self._registry, self._credentials, self._now_s = identity, registry, credentials, now_s
        self._bundle: Bundle | None = None
        self._since_s: float | None = None
        self._trusted: list[bytes] = []
        # {the last certificate of a chain: the fingerprint of the root that it leads to}; few, as issuers are
        self._leads: dict[x509.Certificate, bytes] = {}

    def look(self, answers: Answers | None) -> node_pb.BundleAck:
        """What holds now.

        Args:
            answers: what tells of data planes; None before they can come.
        """
        bundle = self._credentials.bundle()
        if bundle is not self._bundle:
            self._bundle, self._since_s = bundle, None
            # Of what is not trusted any more nobody need wait for the end.
            present = {root.fingerprint(hashes.SHA256()) for root in bundle.roots}
            self._trusted = [root for root in self._trusted if root in present]
            self._leads = {}
        if self._is_everywhere(answers):
            self._since_s = self._now_s() if self._since_s is None else self._since_s
            if self._now_s() - self._since_s >= SETTLE_S:
                self._trusted = [root.fingerprint(hashes.SHA256()) for root in bundle.roots]
        else:
            self._since_s = None
        jwt_keys = sorted(self._jwt_keys())[:_MAX_JWT_KEYS]
        return node_pb.BundleAck(trusted=sorted(self._trusted), used=sorted(self._used(bundle)), jwt_keys=jwt_keys)

    def _is_everywhere(self, answers: Answers | None) -> bool:
        """Whether every workload's files and every Envoy have what is to be trusted."""
        if answers is None or not all(map(self._credentials.is_delivered, self._registry.workloads.values())):
            return False
        return not any(name.endswith("/envoy") for name in answers.waiting())

    def _used(self, bundle: Bundle) -> set[bytes]:
        svids = [self._credentials.svid(name) for name in self._registry.workloads]
        if self._identity.is_somebody():
            svids.append(self._identity.present.svid)
        return {root for svid in svids if svid is not None and (root := self._root_of(svid, bundle))}

    def _root_of(self, svid: X509Svid, bundle: Bundle) -> bytes:
        last = svid.chain[-1]
        if last not in self._leads:
            root = bundle.issuer_of(last)
            self._leads[last] = root.fingerprint(hashes.SHA256()) if root is not None else b""
        return self._leads[last]
