"""The header fields that tell a refused caller of a limit: RateLimit-Policy, what it is, and RateLimit, what is left.

    ratelimit-policy: "platform/orders tenant";q=1500;w=1;pk=:YWNtZQ==:
    ratelimit: "platform/orders tenant";r=0;t=2;pk=:YWNtZQ==:

A quota policy's name is that of the RatePolicy and the level of its tree. The partition key says whose part of it: the
calling tenant, with the method after it at the level "method", `acme/shop.v1.Orders/Create`, and the class at the level
"class", `acme/writes`.

Source: draft-ietf-httpapi-ratelimit-headers, "RateLimit-Policy Field" and "RateLimit Field"; RFC 9651 §3.1.2
(parameters), §3.3.1 (integers), §3.3.3 (strings), §3.3.5 (byte sequences).
"""

import base64
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

POLICY_KEY: Final = "ratelimit-policy"
KEY: Final = "ratelimit"
REQUESTS: Final = "requests"
"""The quota unit where none is named."""
_MOST: Final = 10**15 - 1
_WINDOWS_S: Final = 60


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit as it is told to who is held to it.

    Attributes:
        policy: the RatePolicy, "<tenant>/<name>".
        level: whose limit it is: "total", "tenant", "service", "method" or "class".
        partition: whose part of it, as the module has it; empty where that isn't known.
    """

    policy: str
    level: str
    partition: str = ""

    def policy_field(self, amount: int, per_s: float | None, unit: str = REQUESTS) -> str:
        """RateLimit-Policy.

        Args:
            amount: what may be used each `per_s`.
            per_s: above 0. The field has whole seconds: it tells the same rate over more of them, where that can be
                told exactly within a minute, or else a little less. None of what has no time, as calls at once.
            unit: of the draft's registry: "requests", "content-bytes" or "concurrent-requests".
        """
        quota, window = amount, ""
        if per_s is not None:
            quota, window_s = _whole(amount, per_s)
            window = f";w={window_s}"
        told = "" if unit == REQUESTS else f";qu={_string(unit)}"
        return f"{self._name};q={min(quota, _MOST)}{told}{window}{self._partition_key}"

    def field(self, remaining: float, reset_s: float) -> str:
        """RateLimit: what is left, and after how many seconds there is more."""
        left, reset = (min(max(value, 0.0), float(_MOST)) for value in (remaining, reset_s))
        return f"{self._name};r={math.floor(left)};t={math.ceil(reset)}{self._partition_key}"

    @property
    def _name(self) -> str:
        return _string(f"{self.policy} {self.level}")

    @property
    def _partition_key(self) -> str:
        # As bytes: a method may be written in any alphabet.
        return f";pk=:{base64.b64encode(self.partition.encode()).decode()}:" if self.partition else ""


def partition(tenant: str, part: str) -> str:
    """The partition key of a tenant's method, "/package.Service/Method", or class of methods, "writes"."""
    return tenant + (part if part.startswith("/") else f"/{part}")


def _whole(amount: int, per_s: float) -> tuple[int, int]:
    """A quota for a whole number of seconds."""
    per = Fraction(per_s).limit_denominator(10**9)
    first = max(1, math.ceil(per))
    for window_s in range(first, max(first + 1, _WINDOWS_S + 1)):
        quota = amount * window_s / per
        if quota.denominator == 1:
            return quota.numerator, window_s
    return math.floor(amount * first / per), first


def _string(text: str) -> str:
    """A String; what can't be in one is left out."""
    plain = "".join(char for char in text if " " <= char <= "~")
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
