"""Headers that a backend wants beside OTLP's own: who may send, and for whom."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

NAME: Final = r"^[A-Za-z][A-Za-z0-9-]{0,62}$"
"""What a header may be called."""
OWN: Final = "_mesh"
"""What the mesh's own telemetry is sent as where each tenant's is told apart; no tenant can be called so."""
# They are the transports' to set, or would make of a request something else.
_TAKEN: Final = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "user-agent", "expect", "proxy-authorization", "proxy-connection"}
)
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,8190}[\x21-\x7e])?")


class BadHeader(ValueError):
    """A header can't be sent; the message names it and never its value."""


@dataclass(frozen=True)
class Headers:
    """What each request to a backend bears.

    Attributes:
        fixed: {name: value}, never shown.
        tenant: the name of the one that says whose telemetry it is; empty if none does.
    """

    fixed: Mapping[str, str] = field(default_factory=dict, repr=False)
    tenant: str = ""

    def __post_init__(self) -> None:
        """Checks names and values.

        Raises:
            BadHeader: one can't be sent.
        """
        names = [name.lower() for name in (*self.fixed, self.tenant) if name]
        for name in names:
            # gRPC has names of its own, and reads values of some as binary.
            if not re.fullmatch(NAME, name) or name in _TAKEN or name.startswith("grpc-") or name.endswith("-bin"):
                raise BadHeader(f"header {name!r}: is not one that can be set")
        if len(set(names)) < len(names):
            raise BadHeader("a header is set twice")
        for name, value in self.fixed.items():
            if _VALUE.fullmatch(value) is None:
                raise BadHeader(f"header {name!r}: its value must be one line of printable ASCII with no space around")

    def of(self, tenant: str) -> dict[str, str]:
        """{name in lower case: value} for telemetry of a tenant; "" is the mesh itself."""
        found = {name.lower(): value for name, value in self.fixed.items()}
        if self.tenant:
            found[self.tenant.lower()] = tenant or OWN
        return found
