"""What else nodes are to trust, beside the roots: told to each session at its start and at each change."""

import contextlib
from collections.abc import Callable, Iterator

from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.v1 import node_service_pb2 as v1

Say = Callable[[v1.SyncResponse], None]


class Trust:
    """The trust domain's JWT keys, on their way to the nodes."""

    def __init__(self, jwt: JwtAuthority | None = None) -> None:
        """Tells of the keys of `jwt`; None tells of none."""
        self._jwt = jwt
        self._sessions: set[Say] = set()
        if jwt is not None:
            jwt.listen(self._tell)

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
        return v1.SyncResponse(trust_bundles=v1.TrustBundles(jwt_keys=keys))
