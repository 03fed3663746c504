"""The limits of one server, whichever scope its policy has, and what a caller is told that is over one."""

import threading
from collections.abc import Callable
from typing import Final

import grpc

from meshwarden.sdk import status_detail
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.lease import Leases
from meshwarden.sdk.limit import Decision, Limiter, retry_after
from meshwarden.sdk.share import ShareLink
from meshwarden.v1 import node_service_pb2
from meshwarden.v1.resources_pb2 import RatePolicySpec

POLICY_KEY: Final = "x-meshwarden-policy"
_CODE: Final = int(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])


class Limits:
    """Decides about calls. Safe to share between threads."""

    def __init__(self, link: AgentLink, monotonic_s: Callable[[], float]) -> None:
        self._link, self._monotonic_s = link, monotonic_s
        self._lock = threading.Lock()
        self._own = Limiter()
        self._shares: ShareLink | None = None
        self._decide: Limiter | Leases = self._own
        self._policy = ""

    def update(self, limits: node_service_pb2.ServerLimits) -> None:
        """Puts other limits in force."""
        now_s = self._monotonic_s()
        with self._lock:
            is_shared = bool(limits.policy) and limits.spec.scope != RatePolicySpec.POINT
            if not is_shared:
                self._own.update(limits, now_s)
                self._decide = self._own
                self._drop_shares()
            else:
                if self._shares is None:
                    self._shares = ShareLink(self._link, self._monotonic_s)
                self._shares.leases.update(limits, now_s)
                self._decide = self._shares.leases
                self._shares.start()
            self._policy = limits.policy

    def take(self, tenant: str, method: str) -> Decision:
        """Takes one call, if the limits let it."""
        return self._decide.take(tenant, method, self._monotonic_s())

    def refusal(self, decision: Decision, tenant: str, method: str) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
        """What a refused caller is told: the status message, and trailing metadata."""
        wait, policy = retry_after(decision), self._policy
        level = f"tenant {tenant} at {method}" if decision.level == "method" else f"tenant {tenant}"
        message = f"rate policy {policy} limits {level}: try again in {wait} s"
        details = status_detail.limited(_CODE, message, decision.retry_after_s, tenant, f"RatePolicy {policy}: {level}")
        return message, (
            ("retry-after", wait),
            (POLICY_KEY, f"RatePolicy {policy}"),
            (status_detail.KEY, details),
        )

    def close(self) -> None:
        """Ends the stream to the agent, if there is one."""
        with self._lock:
            self._drop_shares()

    def _drop_shares(self) -> None:
        if self._shares is not None:
            self._shares.close()
            self._shares = None
