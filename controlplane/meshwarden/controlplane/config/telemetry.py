"""[[otlp]], [tail_sampling] and [traces_of]: what is kept, and what goes on to where."""

from typing import Annotated, Literal

from pydantic import Field

from meshwarden.controlplane.config.value import LABEL, REFERENCE, Frozen
from meshwarden.controlplane.gather.forward.header import NAME


class OtlpConfig(Frozen):
    """A backend that telemetry goes on to."""

    # What its queue and its counts are called by.
    name: str = Field(pattern=f"^{LABEL}$")
    # "http://host:port" or "https://host:port"; over HTTP the base to which "/v1/traces" and so on are added.
    endpoint: str = Field(pattern=r"^https?://.+$")
    protocol: Literal["grpc", "http"] = "grpc"
    # A reference to what it wants in the `authorization` header: "vault:kv/meshwarden#otlp_authorization".
    authorization: str | None = Field(default=None, pattern=REFERENCE)
    # Other headers that it wants, each a reference: { x-api-key = "file:/etc/meshwarden/key" }.
    headers: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=REFERENCE)]] = Field(
        default={}, max_length=16
    )
    # The header that tells it whose telemetry a request holds, by the tenant's name: "X-Scope-OrgID" for Tempo.
    tenant_header: str = Field(default="", pattern=f"{NAME}|^$")
    signals: tuple[Literal["traces", "metrics", "logs"], ...] = ("traces", "metrics", "logs")
    # What may wait for it on disk; beyond, the tenant that has most of it loses its oldest.
    max_queue_bytes: int = Field(default=256 << 20, ge=1 << 20)


class TailSamplingConfig(Frozen):
    """Which traces go on to backends; without it all do."""

    # The share of those that nothing asks for; whatever failed, was refused or slow goes on in any case.
    ratio: float = Field(ge=0.0, le=1.0)
    # The same for the spans of some tenants.
    tenants: dict[Annotated[str, Field(pattern=f"^{LABEL}$")], Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        default={}
    )
    # A span that takes longer is slow, and so is a call that takes longer than its service's SLO says.
    slow_s: float | None = Field(default=None, gt=0.0, le=86_400.0)
    # How long is waited for a trace that does not become complete, and how long for what comes late to one that has: a
    # second, or three where other regions may still say that they keep it.
    wait_s: float = Field(default=10.0, ge=0.1, le=600.0)
    grace_s: float | None = Field(default=None, ge=0.0, le=60.0)
    # What may wait, in memory and on disk; beyond, the oldest of the tenant that has most of it is decided on.
    max_waiting_bytes: int = Field(default=64 << 20, ge=1 << 20, le=1 << 30)


class TenantTracesConfig(Frozen):
    """How long a tenant's recent traces are kept, and how much of them; what is left out is as of all tenants."""

    keep_s: float | None = Field(default=None, ge=60.0, le=30 * 86_400.0)
    # Beyond, it loses its oldest, however much the others have; 0: none are kept.
    max_bytes: int | None = Field(default=None, ge=0)
