"""RegionService: tells the control planes of other regions what this one has counted, and which traces it keeps."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.tail import TailSampler
from meshwarden.controlplane.identity.authorize import authorize_region
from meshwarden.sdk.mtls import peer
from meshwarden.v1.region_service_pb2 import KeptTraces, PullRequest, PullResponse
from meshwarden.v1.region_service_pb2_grpc import RegionServiceServicer

PULL: Final = "/meshwarden.v1.RegionService/Pull"
# A row is 6 KiB at the most, a message 4 MiB.
PAGE_ROWS: Final = 500
# One that is being served and one that comes in its place.
_PULLS: Final = 2


class RegionServicer(RegionServiceServicer):
    """Reads the ledger to the control plane of another region of the same trust domain."""

    def __init__(self, ledger: Ledger, tail: TailSampler, trust_domain: str, region: str) -> None:
        self._ledger, self._tail, self._trust_domain, self._region = ledger, tail, trust_domain, region
        self._pulling: Counter[str] = Counter()

    async def Pull(
        self, request: PullRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[PullResponse]:
        verified = peer.current()
        caller = verified.spiffe_id if verified is not None else None
        region = authorize_region(caller, PULL, self._trust_domain, self._region)
        if self._pulling[region] >= _PULLS:
            text = f"region {region} pulls {_PULLS} times already: wait for one to end"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._pulling[region] += 1
        try:
            if request.HasField("kept") and self._tail.is_on:
                told = self._tail.word.told(request.kept.epoch, request.kept.after)
                if told[:2] != (request.kept.epoch, request.kept.after):
                    kept = KeptTraces(epoch=told.epoch, sequence=told.sequence, trace_ids=b"".join(told.trace_ids))
                    yield PullResponse(kept=kept)
            known = request.incarnation == self._ledger.incarnation and request.after <= self._ledger.sequence
            after, until = request.after if known else 0, self._ledger.sequence
            # Even a page of no rows tells of the incarnation; what changes meanwhile is for the next pull.
            while True:
                page = await self._ledger.changed(after, PAGE_ROWS)
                after = page.sequence
                if page.rows or not known:
                    yield PullResponse(incarnation=self._ledger.incarnation, sequence=after, rows=page.rows)
                known = True
                if len(page.rows) < PAGE_ROWS or after >= until:
                    return
        finally:
            self._pulling[region] -= 1
