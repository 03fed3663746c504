"""What else nodes are to trust, beside the roots: told to each session at its start and at each change."""

import contextlib
from collections.abc import Callable, Iterator

from meshwarden.certs.bundle_document import TrustBundle
from meshwarden.controlplane.identity.federation import Federation
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.v1 import node_service_pb2 as v1

Say = Callable[[v1.SyncResponse], None]


class Trust:
    """Our JWT keys and other trust domains' bundles, on their way to the nodes."""

    def __init__(self, jwt: JwtAuthority | None = None, federation: Federation | None = None) -> None:
        """Tells of what these have; None has nothing."""
        self._jwt, self._federation = jwt, federation
        self._sessions: set[Say] = set()
        for source in (jwt, federation):
            if source is not None:
                source.listen(self._tell)

    @contextlib.contextmanager
    def following(self, say: Say) -> Iterator[None]:
        """Says what there is, and what it becomes until the end."""
        say(self._message())
        self._sessions.add(say)
        try:
            yield
        finally:
            self._sessions.discard(say)

    def _tell(self) -> None:
        message = self._message()
        for say in self._sessions:
            say(message)

    def _message(self) -> v1.SyncResponse:
        keys = [] if self._jwt is None else self._jwt.bundle().to_proto()
        for key in keys:
            key.tainted = self._jwt is not None and key.kid in self._jwt.tainted
        foreign = [] if self._federation is None else map(_foreign, self._federation.bundles())
        return v1.SyncResponse(trust_bundles=v1.TrustBundles(jwt_keys=keys, foreign=foreign))


def _foreign(bundle: TrustBundle) -> v1.ForeignBundle:
    roots = bundle.x509.ders if bundle.x509 is not None else ()
    return v1.ForeignBundle(trust_domain=bundle.trust_domain, roots=roots, jwt_keys=bundle.jwt.to_proto())
