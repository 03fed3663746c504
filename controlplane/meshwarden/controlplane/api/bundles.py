"""ListBundles of AdminService, and what GetStatus says of other trust domains: operators of the mesh see them."""

from collections.abc import Iterable, Iterator

from meshwarden.certs.bundle_document import TrustBundle, parse_document
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.identity.bundle_document import BundleDocument
from meshwarden.controlplane.identity.federation import Federation, State
from meshwarden.v1 import admin_service_pb2 as v1


class BundleDesk:
    """Answers operators who ask for bundles."""

    def __init__(self, document: BundleDocument, federation: Federation, trust_domain: str) -> None:
        self._document, self._federation, self._trust_domain = document, federation, trust_domain

    async def listed(self, caller: SpiffeId | None) -> v1.ListBundlesResponse:
        """Shows all of them, our own first."""
        authorize(caller, "/meshwarden.v1.AdminService/ListBundles", None)
        document = await self._document.read()
        own = v1.BundleState(trust_domain=self._trust_domain, own=True, document=document)
        _count(own, parse_document(self._trust_domain, document))
        answer = v1.ListBundlesResponse(bundles=[own])
        for state in self._federation.states():
            answer.bundles.append(_state(state))
            answer.bundles[-1].document = state.document
        return answer

    def states(self) -> Iterator[v1.BundleState]:
        """How it stands with the others."""
        return map(_state, self._federation.states())

    def warnings(self) -> Iterator[str]:
        """What is wrong with them, for people."""
        for name, fault in self._federation.faults().items():
            yield f"the bundle of trust domain {name} can't be fetched: {fault}"

    def home_only(self, nodes: Iterable[v1.NodeState]) -> Iterator[str]:
        """Which data planes can do nothing with other trust domains, where there are any, for people."""
        if not self._federation.states():
            return
        for node in nodes:
            found = [f"{ref.id} ({ref.client})" for ref in node.data_planes if ref.home_only]
            if found:
                named = f"{', '.join(found[:4])}{' …' if len(found) > 4 else ''}"
                yield (
                    f"{len(found)} data planes on node {node.node} know our own trust domain alone, and so refuse "
                    f"callers and servers of others in the handshake: {named}"
                )


def _state(state: State) -> v1.BundleState:
    found = v1.BundleState(trust_domain=state.trust_domain, fault=state.fault)
    found.overdue.FromTimedelta(state.overdue)
    if state.fetched is not None:
        found.fetched.FromDatetime(state.fetched)
    if state.bundle is not None:
        _count(found, state.bundle)
    return found


def _count(state: v1.BundleState, bundle: TrustBundle) -> None:
    state.roots = len(bundle.x509.roots) if bundle.x509 is not None else 0
    state.jwt_keys, state.sequence = len(bundle.jwt.keys), bundle.sequence or 0
