"""Attests by a join token that an operator has made for the node."""

from meshwarden.controlplane.identity.attestor import Attempt, Attested, Attestor
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.join_token import JoinTokens


class TokenAttestor(Attestor):
    """Knows the node by its token, which the commit that makes the node uses up."""

    def __init__(self, tokens: JoinTokens) -> None:
        """Takes what finds tokens."""
        self._tokens = tokens

    async def attest(self, attempt: Attempt) -> Attested:
        """Says whose token it is; one that is used up is `NodeIdentity`'s to judge, which knows the key."""
        found = await self._tokens.find(attempt.request.join_token)
        if found is None:
            raise Denied("join token: unknown. Make one with `meshwarden token create`; it is good for one node, once")
        record, revision = found
        if record.use is None and attempt.now >= record.expire_time:
            raise Denied(f"join token of {record.node!r}: it ended at {record.expire_time.isoformat()}. Make a new one")
        return Attested(record.node, record.tenants, token=(record, revision))
