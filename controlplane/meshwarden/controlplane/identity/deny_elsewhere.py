"""What other regions have denied, denied here as well: a key that has leaked in one is of no use in another.

What a region denies is stored like what our own operators deny, with the region as its author, and lifted when the
region lifts it. While a region is away its denies stand.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Final

from meshwarden.certs.clock import Clock
from meshwarden.certs.deny import MAX_DENIES, Deny, InvalidDeny
from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.controlplane.identity.deny import BY_REGION, MAX_REASON, Denies, DenyRecord, NotDenied, key_of
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.store.limit import MAX_OPS
from meshwarden.v1 import node_service_pb2
from meshwarden.v1.region_service_pb2 import GetDeniesResponse, RegionDeny

MAX_ETAG: Final = 64


def told(watch: DenyWatch, etag: str) -> GetDeniesResponse:
    """Returns what this region has denied itself, for one that has the list of an etag."""
    answer = GetDeniesResponse()
    for record in sorted(watch.records(), key=lambda record: record.key):
        if not record.by.startswith(BY_REGION):
            deny = node_service_pb2.Deny(spiffe_id=record.deny.spiffe_id, serial=record.deny.serial)
            deny.not_after.FromDatetime(record.deny.not_after)
            answer.denies.append(RegionDeny(deny=deny, reason=record.reason))
    answer.etag = hashlib.sha256(answer.SerializeToString(deterministic=True)).hexdigest()
    return GetDeniesResponse(etag=answer.etag) if answer.etag == etag else answer


class DeniesElsewhere:
    """Keeps our denies as the other regions have theirs."""

    def __init__(self, denies: Denies, watch: DenyWatch, clock: Clock) -> None:
        self._denies, self._watch, self._clock = denies, watch, clock
        # {region: (etag, {store key: what it denies, and why})}
        self._told: dict[str, tuple[str, Mapping[str, tuple[Deny, str]]]] = {}

    def etag(self, region: str) -> str:
        """Names what a region has told us last; empty before it has."""
        return self._told[region][0] if region in self._told else ""

    async def hear(self, region: str, answer: GetDeniesResponse) -> None:
        """Denies what a region does, and what it has denied no more is allowed.

        Raises:
            InvalidDeny: no control plane of ours would say so, or ours are as many as there can be. What it said before
                holds.
            StoreError: it can't be stored.
        """
        if region not in self._told or answer.etag != self._told[region][0]:
            self._told[region] = answer.etag, _read(answer)
        author, now = BY_REGION + region, self._clock()
        wanted = {key: said for key, said in self._told[region][1].items() if said[0].not_after > now}
        present = {record.key: record for record in self._watch.records()}
        theirs = {key: record for key, record in present.items() if record.by == author}
        gone = [record.deny for key, record in theirs.items() if key not in wanted]
        new = [said for key, said in wanted.items() if key not in present or _differs(theirs.get(key), said)]
        try:
            for start in range(0, len(gone), MAX_OPS):
                targets = [(deny.spiffe_id, deny.serial) for deny in gone[start : start + MAX_OPS]]
                await self._denies.allow(targets, f"allowed in {author}", author)
            for reason in dict.fromkeys(reason for _, reason in new):
                await self._add([deny for deny, why in new if why == reason], reason, author)
        except NotDenied:
            pass  # it has ended meanwhile, or another of our control planes was first

    async def _add(self, denies: Sequence[Deny], reason: str, author: str) -> None:
        for start in range(0, len(denies), MAX_OPS):
            await self._denies.add(denies[start : start + MAX_OPS], reason, author)


def _differs(record: DenyRecord | None, said: tuple[Deny, str]) -> bool:
    return record is not None and (record.deny, record.reason) != said


def _read(answer: GetDeniesResponse) -> dict[str, tuple[Deny, str]]:
    """Reads what a region says.

    Raises:
        InvalidDeny: it is no list of denies.
    """
    if len(answer.denies) > MAX_DENIES or not 0 < len(answer.etag) <= MAX_ETAG:
        raise InvalidDeny(f"{len(answer.denies)} denies under {answer.etag[:MAX_ETAG]!r}")
    found = {}
    for said in answer.denies:
        try:
            deny = Deny.of(said.deny.spiffe_id, said.deny.serial, said.deny.not_after.ToDatetime(tzinfo=UTC))
        except (ValueError, OverflowError) as error:
            raise InvalidDeny(f"a deny that is none: {error}") from None
        if deny.spiffe_id and not deny.serial and SpiffeId.parse(deny.spiffe_id).role is Role.CONTROL_PLANE:
            raise InvalidDeny(f"{deny} is a control plane's own")
        found[key_of(deny)] = deny, said.reason[:MAX_REASON]
    return found
