"""Roots that a PKI engine keeps, for both forms of an authority in Vault. `vault_slots` says how states are kept."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from meshwarden.certs.authority import slot, vault_slots
from meshwarden.certs.authority.port import Authority, AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.slot import RootRefused, Roots, SlotState
from meshwarden.certs.authority.vault_chain import read_chain
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_slots import PREPARED, REVOKED, Call, Issuer, Kept, Slot
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.issue import authority_name
from meshwarden.certs.svid import new_key

T = TypeVar("T")


class VaultRoots(Authority):
    """An authority whose roots are issuers of a PKI engine."""

    def __init__(self, client: VaultClient, mount: str, trust_domain: str, clock: Callable[[], datetime]) -> None:
        self._client, self._mount = client, mount
        self._domain, self._now = trust_domain, clock
        self._looking = asyncio.Lock()
        # What the engine's list said at the last look, and what that means.
        self._list: dict[str, Any] = {}
        self._kept: Kept | None = None
        self._known: Bundle | None = None
        self._unread = ""

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
            try:
                return (await self._look()).states
            except AuthorityUnavailable:
                if self._kept is None:
                    raise
                return self._kept.states

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
        self._unread = ""
        return self._adopt(kept)

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

    def _adopt(self, kept: Kept) -> Kept:
        self._kept = kept
        revision = 1 if self._known is None else self._known.revision + 1
        bundle = Bundle.of(self._domain, [slot.signer.root for slot in kept.slots], revision)
        if self._known is None or bundle.roots != self._known.roots:
            self._known = bundle
        return kept

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
