"""Waiting for the moment to renew, and what a trace is told of it."""

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context

from meshwarden.certs.authority.slot import Roots, SlotState, fingerprint_of
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import Clock
from meshwarden.certs.issue import name_text
from meshwarden.certs.svid import X509Svid

# The clock is looked at this often: it may be set, and a suspended machine's event loop doesn't know how long it slept.
TICK = timedelta(seconds=30)
_AT_START: Final = "the control plane has started"
_HALF_LIFE: Final = "half-life"


async def until_due(not_before: datetime, due: datetime, clock: Clock) -> None:
    """Waits until `due`, or until the clock was set back to before the certificate begins."""
    while not_before <= (now := clock()) < due:  # noqa: ASYNC110 - a clock tells nobody that it was set
        await asyncio.sleep(min(TICK, due - now).total_seconds())


class Renewals:
    """Traces the certificates that one identity of the control plane's own takes."""

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        """Spans go to `provider`, None for nowhere."""
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("meshwarden.controlplane")

    @contextlib.contextmanager
    def next(self, present: X509Svid | None) -> Iterator[None]:
        """A trace of its own, `issue`, of taking the certificate after `present`; what is raised in it fails it."""
        about = {"mesh.cause": _AT_START if present is None else _HALF_LIFE}
        with self._tracer.start_as_current_span("issue", Context(), attributes=about):
            yield


def note_issued(svid: X509Svid) -> None:
    """The present span has made a certificate."""
    here, leaf = trace.get_current_span(), svid.chain[0]
    here.set_attribute("mesh.serial", svid.serial)
    here.set_attribute("mesh.by", name_text(leaf.issuer))
    until = svid.not_after.isoformat()
    here.set_attribute("mesh.changes", [f"ISSUED certificate {svid.serial} of {svid.spiffe_id} until {until}"])


def leads_to_good(svid: X509Svid, bundle: Bundle, roots: Roots) -> bool:
    """Whether the root that a certificate leads to is one of these, and not tainted."""
    root = bundle.issuer_of(svid.chain[-1])
    good = {state.fingerprint for state in roots if state.state is not SlotState.TAINTED}
    return root is not None and fingerprint_of(root) in good
