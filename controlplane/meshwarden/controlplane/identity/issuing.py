"""What the audit log and a trace are told of the authority's issuing certificates."""

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from opentelemetry.trace import TracerProvider

from meshwarden.certs.authority.port import OnIssued
from meshwarden.certs.issue import name_text
from meshwarden.controlplane.audit.port import AuditLog, AuditUnavailable

log = structlog.get_logger()


def recorder(audit: AuditLog, provider: TracerProvider) -> OnIssued:
    """Returns what records each issuing certificate as an event, and as a span `authority` below what has wanted it."""
    tracer = provider.get_tracer("meshwarden.controlplane")

    async def record(chain: tuple[x509.Certificate, ...]) -> None:
        issuing, root = chain[0], chain[-1]
        fields = {
            "serial": f"{issuing.serial_number:x}",
            "subject": name_text(issuing.subject),
            "not_after": issuing.not_valid_after_utc.isoformat(),
            "root": root.fingerprint(hashes.SHA256()).hex(),
        }
        change = f"ISSUED issuing certificate {fields['serial']} until {fields['not_after']}"
        about = {
            "mesh.serial": fields["serial"],
            "mesh.changes": [change],
            "mesh.by": f"root {name_text(root.subject)}",
        }
        tracer.start_span("authority", attributes=about).end()
        try:
            await audit.record("authority.issue", **fields)
        except AuditUnavailable as error:
            # It goes to nobody, and what it signs for others is recorded or not handed out.
            log.error("issuing certificate not audited", error=str(error), **fields)

    return record
