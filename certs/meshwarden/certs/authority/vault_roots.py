"""Roots that a PKI engine keeps, for both forms of an authority in Vault. `vault_slots` says how states are kept.

What the engine said last is kept (`vault_memory`), and stands where it is away when we start, as it does when it goes
away later: whoever refuses us is there, and is believed.
"""

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from meshwarden.certs.authority import slot, vault_slots
from meshwarden.certs.authority.kept import KeptUnusable
from meshwarden.certs.authority.port import Authority, AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.slot import RootRefused, Roots, SlotState
from meshwarden.certs.authority.vault_chain import read_chain
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_memory import VaultMemory
from meshwarden.certs.authority.vault_slots import PREPARED, REVOKED, Call, Issuer, Kept, Slot
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.issue import authority_name
from meshwarden.certs.svid import new_key

# An engine that could not be reached isn't asked again for so long which roots there are.
PAUSE = timedelta(seconds=3)
LOG = logging.getLogger(__name__)
T = TypeVar("T")


class VaultRoots(Authority):
    """An authority whose roots are issuers of a PKI engine."""

    def __init__(
        self,
        client: VaultClient,
        mount: str,
        trust_domain: str,
        clock: Callable[[], datetime],
        memory: VaultMemory | None = None,
    ) -> None:
        self._client, self._mount, self._memory = client, mount, memory
        self._domain, self._now = trust_domain, clock
        self._looking = asyncio.Lock()
        # What the engine's list said at the last look, and what that means.
        self._list: dict[str, Any] = {}
        self._kept: Kept | None = None
        self._known: Bundle | None = None
        self._unread = ""
        # When it was last found away.
        self._missed: datetime | None = None
        # Whether what is known is what an earlier start has kept.
        self._is_recalled = False
        # What the memory has, and why it doesn't have what is known; empty if it does.
        self._remembered: Kept | None = None
        self._unkept = ""

    @property
    @abstractmethod
    def _meanwhile(self) -> str:
        """What becomes of signing while what is known is only what was kept."""

    @abstractmethod
    def _returned(self) -> None:
        """It is there, for the first time since we have started: nothing waits for another try any more."""

    @property
    def _away(self) -> str:
        """What is wrong with Vault, with our login, or with what is kept of it; empty if nothing is."""
        said = self._client.fault or self._unread
        if self._is_recalled:
            return f"started without Vault, which is asked every few seconds; {self._meanwhile} ({said})"
        return said or self._unkept

    @abstractmethod
    async def _try(self, signer: Issuer) -> None:
        """Has something for nobody signed.

        Raises:
            AuthorityError: what this issuer signs is of no use.
        """

    async def bundle(self) -> Bundle:
        """Returns the trust domain's roots; the same object until they change."""
        if self._known is None:
            await self.roots()
        assert self._known is not None  # noqa: S101 - or it had raised
        return self._known

    @property
    def fixed(self) -> str:
        """Why it makes no root: the engine's keys are another authority's; empty if it makes some."""
        if self._kept is None or len(self._kept.active.signer.chain) == 1:
            return ""
        return (
            f"the root above {self._mount} is kept elsewhere: import an issuer that leads to another root into it and "
            "make that the default, and it is prepared, acknowledged and activated"
        )

    async def roots(self) -> Roots:
        """Returns the roots with their states, as the engine has them; while it is away, as it had them."""
        async with self._looking:
            if self._kept is not None and self._missed is not None and self._now() - self._missed < PAUSE:
                return self._kept.states
            try:
                return (await self._look()).states
            except AuthorityUnavailable:
                if self._kept is None:
                    raise
                self._missed = self._now()
                return self._kept.states

    async def _begin(self) -> AuthorityUnavailable | None:
        """Sees which roots there are; where the engine is away, takes what was kept of it, and returns how it is away.

        Raises:
            AuthorityUnavailable: nothing was kept that can be used.
            AuthorityError: the engine refuses.
        """
        try:
            await self.roots()
        except AuthorityUnavailable as error:
            self._adopt(await self._recalled(error))
            self._is_recalled, self._missed = True, self._now()
            LOG.warning("started without Vault, with the roots that it had: %s", error)
            return error
        return None

    async def _recalled(self, error: AuthorityUnavailable) -> Kept:
        reason = "nothing was kept of its roots"
        if self._memory is not None:
            try:
                kept = await asyncio.to_thread(self._memory.roots)
            except KeptUnusable as unusable:
                kept, reason = None, str(unusable)
            if kept is not None:
                return kept
        raise AuthorityUnavailable(
            f"{error}\nNobody can start without it here: {reason}. Start Vault, or unseal it; once it was there, "
            "a start does without"
        )

    async def prepare(self, now: datetime) -> Roots:
        """Makes a new root in the engine, which is trusted from now on and signs nothing yet."""
        async with self._looking:
            kept = await self._look()
            slot.check_room(kept.states)
            if self.fixed:
                raise RootRefused(self.fixed)
            try:
                await self._generate(kept.active)
            except AuthorityError:
                slot.check_room((await self._look()).states)  # somebody else was faster
                raise
            return (await self._look()).states

    async def activate(self, fingerprint: str) -> Roots:
        """Has a prepared root sign from now on, and makes it the engine's default; the one before may sign no more."""
        async with self._looking:
            kept = await self._look()
            now = self._now()
            after = slot.activated(kept.states, fingerprint, now)
            chosen = kept.of(slot.active(after).fingerprint)
            await self._try(chosen.signer)
            await self._call(Call(chosen.signer, vault_slots.name_of(chosen.signer, "active", now)))
            await self._retire(kept.active, SlotState.OLD.lower(), now)
            await self._make_default(chosen.signer)
            return (await self._look()).states

    async def taint(self, fingerprint: str) -> Roots:
        """Marks a root whose key others may have; it can't sign by accident."""
        async with self._looking:
            kept = await self._look()
            slot.tainted(kept.states, fingerprint, self._now())
            chosen = kept.of(slot.find(kept.states, fingerprint).fingerprint)
            await self._retire(chosen, SlotState.TAINTED.lower(), self._now())
            return (await self._look()).states

    async def revoke(self, fingerprint: str) -> Roots:
        """Takes a root out of the bundle; issuer and key stay in the engine, for whoever keeps that to delete."""
        async with self._looking:
            kept = await self._look()
            slot.revoked(kept.states, fingerprint)
            chosen = kept.of(slot.find(kept.states, fingerprint).fingerprint)
            await self._retire(chosen, REVOKED, self._now())
            return (await self._look()).states

    async def _by_signer(self, work: Callable[[Issuer], Awaitable[T]]) -> T:
        """Has who signs now do something; somebody else may have activated another since we looked."""
        if self._kept is None:
            await self.roots()
        assert self._kept is not None  # noqa: S101 - or it had raised
        signer = self._kept.active.signer
        try:
            return await work(signer)
        except AuthorityUnavailable:
            raise
        except AuthorityError:
            await self.roots()
            other = self._kept.active.signer
            if other == signer:
                raise
            return await work(other)

    # -- asking the engine

    async def _look(self) -> Kept:
        """Sees which issuers there are; the first that ever signs for us gets its name."""
        try:
            kept, call = await self._read()
            if call is not None:
                await self._call(call)
                kept, _ = await self._read()
        except AuthorityError as error:
            self._unread = str(error)
            raise
        self._unread, self._missed = "", None
        if self._is_recalled:
            self._is_recalled = False
            self._returned()
        self._adopt(kept)
        await self._remember(kept)
        return kept

    async def _remember(self, kept: Kept) -> None:
        if self._memory is None or kept is self._remembered:
            return
        try:
            await asyncio.to_thread(self._memory.keep_roots, kept)
        except OSError as error:
            self._unkept = f"a start without Vault would not know these roots, they can't be kept: {error}"
            LOG.error("roots not kept: %s", error)
        else:
            self._remembered, self._unkept = kept, ""

    async def _read(self) -> tuple[Kept, Call | None]:
        path = f"{self._mount}/issuers"
        listed = (await self._client.call(path, lambda client: _list(client, path), "list"))["data"]["key_info"]
        if self._kept is not None and listed == self._list:
            return self._kept, None
        issuers = [
            await self._one(issuer_id, said["issuer_name"], said["is_default"])
            for issuer_id, said in listed.items()
            if said["key_id"] and vault_slots.is_of_interest(said["issuer_name"], said["is_default"])
        ]
        before = [state.fingerprint for state in self._kept.states] if self._kept is not None else []
        try:
            kept, call = vault_slots.read_slots([issuer for issuer in issuers if issuer is not None], before)
        except AuthorityError as error:
            raise AuthorityError(f"{self._client.address} {self._mount}: {error}") from None
        if call is None:
            self._list = listed
        return kept, call

    async def _one(self, issuer_id: str, name: str, is_default: bool) -> Issuer | None:
        path = f"{self._mount}/issuer/{issuer_id}/json"
        data = (await self._client.call(path, lambda client: client.read(path), "read"))["data"]
        try:
            chain = read_chain(data, f"{self._client.address} {self._mount}: issuer {name or issuer_id}")
        except AuthorityError:
            if is_default and self._kept is None:
                raise
            return None
        return vault_slots.read_issuer(issuer_id, name, is_default, chain)

    def _adopt(self, kept: Kept) -> None:
        self._kept = kept
        revision = 1 if self._known is None else self._known.revision + 1
        bundle = Bundle.of(self._domain, [slot.signer.root for slot in kept.slots], revision)
        if self._known is None or bundle.roots != self._known.roots:
            self._known = bundle

    async def _generate(self, like: Slot) -> None:
        path = f"{self._mount}/issuers/generate/root/internal"
        name = authority_name(self._domain, "root", new_key().public_key())
        life = like.state.not_after - like.state.not_before
        request = {
            "issuer_name": PREPARED,
            "common_name": f"root of {self._domain}"[:64],
            "organization": "Meshwarden",
            # Tells it from the one before, as `authority_name` does.
            "serial_number": name.rdns[-1].rfc4514_string().partition("=")[2],
            "uri_sans": f"spiffe://{self._domain}",
            "exclude_cn_from_sans": True,
            "key_type": "ec",
            "key_bits": 256,
            "ttl": f"{int(life.total_seconds())}s",
        }
        await self._client.call(path, lambda client: client.write_data(path, data=request))

    async def _retire(self, retired: Slot, what: str, since: datetime) -> None:
        for issuer in retired.issuers:
            await self._call(Call(issuer, vault_slots.name_of(issuer, what, since), vault_slots.USAGE[what]))

    async def _call(self, call: Call) -> None:
        path = f"{self._mount}/issuer/{call.issuer.id}"
        words = {"issuer_name": call.name} | ({"usage": call.usage} if call.usage is not None else {})
        await self._client.call(path, lambda client: _patch(client, path, words), "patch")

    async def _make_default(self, issuer: Issuer) -> None:
        path = f"{self._mount}/config/issuers"
        said = (await self._client.call(path, lambda client: client.read(path), "read"))["data"]
        words = {**said, "default": issuer.id}
        await self._client.call(path, lambda client: client.write_data(path, data=words))


def _list(client: Any, path: str) -> Any:
    # hvac's own `list` hides why there is nothing.
    return client.adapter.request("list", f"/v1/{path}")


def _patch(client: Any, path: str, words: dict[str, str]) -> None:
    # What isn't named stays as it is; a POST would take it away.
    headers = {"Content-Type": "application/merge-patch+json"}
    client.adapter.request("patch", f"/v1/{path}", headers=headers, json=words)
