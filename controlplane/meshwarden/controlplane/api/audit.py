"""AuditService: what was done, and that nothing of it was changed since."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.api.validation import moment
from meshwarden.controlplane.audit import read
from meshwarden.controlplane.audit.anchor import Anchor
from meshwarden.controlplane.audit.port import AuditBroken, AuditUnavailable
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import audit_service_pb2 as v1
from meshwarden.v1 import audit_service_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: Final = "/meshwarden.v1.AuditService/"
EVENTS: Final = 100


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Answers operators; a tenant's operator is shown what concerns its tenant."""

    def __init__(self, path: Path, anchor: Anchor) -> None:
        self._path, self._anchor = path, anchor
        # Each reads up to the whole file: one at a time.
        self._turn = asyncio.Lock()

    async def ListEvents(self, request: v1.ListEventsRequest, context: Context) -> v1.ListEventsResponse:
        verified = peer.current()
        caller = verified.spiffe_id if verified is not None else None
        tenant = request.tenant or (caller.tenant if caller is not None else None) or ""
        authorize(caller, SERVICE + "ListEvents", tenant or None)
        # Another trust domain's tenants aren't ours, whatever their names are.
        trust_domain = caller.trust_domain if caller is not None else ""
        since = moment(request.start, "start").isoformat(timespec="milliseconds") if request.HasField("start") else ""

        def wanted(entry: read.Entry) -> bool:
            if request.event and not _is_named(entry["event"], request.event):
                return False
            return not tenant or (sees(caller, tenant) and _concerns(entry["fields"], tenant, trust_domain))

        async with self._turn:
            try:
                page = await asyncio.to_thread(
                    read.newest, self._path, wanted, request.page_size or EVENTS, request.before, since
                )
            except (AuditBroken, OSError) as error:
                raise AuditUnavailable(f"the audit log can't be read: {error}") from None
        return v1.ListEventsResponse(events=map(_event, page.entries), next_before=page.next_before)

    async def VerifyEvents(self, request: v1.VerifyEventsRequest, context: Context) -> v1.VerifyEventsResponse:
        verified = peer.current()
        authorize(verified.spiffe_id if verified is not None else None, SERVICE + "VerifyEvents", None)
        noted = self._anchor.noted
        answer = v1.VerifyEventsResponse(anchored_seq=noted.link.seq)
        if noted.time is not None:
            answer.anchored_time.FromDatetime(noted.time)
        async with self._turn:
            try:
                link = await asyncio.to_thread(read.verify, self._path, noted.link)
            except (AuditBroken, OSError) as error:
                answer.fault = str(error)
                return answer
        answer.seq, answer.hash = link.seq, link.hash
        return answer


def _is_named(event: str, wanted: str) -> bool:
    return event.startswith(wanted) if wanted.endswith(".") else event == wanted


def _concerns(fields: read.Entry, tenant: str, trust_domain: str) -> bool:
    """Says whether an event is of a tenant's things, or was done by one of its operators."""
    if fields.get("tenant") == tenant:
        return True
    for name in ("spiffe_id", "by"):
        try:
            identity = SpiffeId.parse(str(fields.get(name, "")))
        except InvalidSpiffeId:
            continue
        if (identity.trust_domain, identity.tenant) == (trust_domain, tenant):
            return True
    return False


def _event(entry: read.Entry) -> v1.AuditEvent:
    event = v1.AuditEvent(seq=entry["seq"], event=entry["event"], hash=entry["hash"])
    event.time.FromDatetime(datetime.fromisoformat(entry["time"]))
    event.fields.update(entry["fields"])
    return event
