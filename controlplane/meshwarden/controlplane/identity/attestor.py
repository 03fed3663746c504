"""The port to attestors: what decides which node is calling before it has a certificate of ours.

An attestor judges one proof of `AttestRequest`. It either says which node it is, or challenges: the caller answers with
a second request on the same connection. What an attestor wants to know then travels with the challenge, sealed, so that
strangers cost the control plane no memory and any number of attestations can be under way.

`Denied` (identity.authorize) says that a proof isn't taken, `NodeDenied` why a node that is known isn't.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.record import TokenRecord
from meshwarden.v1 import node_service_pb2 as v1

CHALLENGE_LIFE = timedelta(seconds=30)
_NONCE_BYTES = 12
_HEAD_BYTES = 8


@dataclass(frozen=True)
class Attempt:
    """One try of a node to attest.

    Attributes:
        request: what it sent, within the schema's rules.
        address: where it calls from, for the audit log.
        connection: names the connection, unlike any other's; a challenge is good there alone.
        now: the present, aware.
        answered: what the attestor has sealed into the challenge that `request.answer` answers; None at first.
    """

    request: v1.AttestRequest = field(repr=False)
    address: str
    connection: str
    now: datetime
    answered: bytes | None = None


@dataclass(frozen=True)
class Attested:
    """Which node it is.

    Attributes:
        node: its name.
        tenants: whose entries it may serve; empty for any tenant's.
        about: what the audit log is to say of the proof.
        token: the join token that is used up with it, and its revision.
    """

    node: str
    tenants: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    token: tuple[TokenRecord, int] | None = None


@dataclass(frozen=True)
class Challenge:
    """What the caller is to prove next.

    Attributes:
        data: what it gets.
        state: what the attestor gets back with the answer, in `Attempt.answered`; the caller can't read it.
    """

    data: bytes
    state: bytes = field(repr=False)


class Attestor(Protocol):
    """Judges proofs of one kind."""

    async def run(self) -> None:
        """Keeps fresh what it needs, if anything, until it is cancelled."""
        return  # an engine that needs nothing

    async def attest(self, attempt: Attempt) -> Attested | Challenge:
        """Says which node it is, or challenges.

        Raises:
            Denied: the proof isn't taken; the message says why and what to do.
            AuthorityError: who could tell (Vault) is away.
            StoreError: what is stored can't be read.
        """
        ...


class Seal:
    """Keeps what a challenge is about with the caller, who can neither read nor change it.

    Its key lives and dies with the process, as the connections do that challenges are bound to.
    """

    def __init__(self) -> None:
        """Makes a key."""
        self._cipher = AESGCM(AESGCM.generate_key(256))

    def close(self, challenge: Challenge, kind: str, attempt: Attempt) -> v1.AttestChallenge:
        """Returns what the caller gets."""
        nonce, end = os.urandom(_NONCE_BYTES), int((attempt.now + CHALLENGE_LIFE).timestamp())
        head = end.to_bytes(_HEAD_BYTES, "big")
        sealed = self._cipher.encrypt(nonce, challenge.state, head + _about(kind, attempt))
        return v1.AttestChallenge(state=head + nonce + sealed, data=challenge.data)

    def open(self, kind: str, attempt: Attempt) -> bytes:
        """Returns what an attestor has sealed.

        Raises:
            Denied: it is of no challenge of ours, or of one for another request or connection, or has ended; with
                UNAVAILABLE, since whoever honestly comes so late, or after a lost connection, begins anew.
        """
        state = attempt.request.answer.state
        head, nonce, sealed = (
            state[:_HEAD_BYTES],
            state[_HEAD_BYTES:][:_NONCE_BYTES],
            state[_HEAD_BYTES + _NONCE_BYTES :],
        )
        again = "begin the attestation anew"
        try:
            opened = self._cipher.decrypt(nonce, sealed, head + _about(kind, attempt))
        except (InvalidTag, ValueError):
            message = f"the challenge was not made for this request on this connection: {again}"
            raise Denied(message, grpc.StatusCode.UNAVAILABLE) from None
        if attempt.now.timestamp() > int.from_bytes(head, "big"):
            raise Denied(f"the challenge has ended: {again}", grpc.StatusCode.UNAVAILABLE)
        return opened


def _about(kind: str, attempt: Attempt) -> bytes:
    """What a challenge is bound to. Each part has a length of its own or is a digest."""
    parts = (kind.encode(), attempt.connection.encode(), attempt.request.csr)
    return b"".join(hashlib.sha256(part).digest() for part in parts)
