"""Names of an Envoy's part for an external service: the control plane writes them, the agent reads them."""

from typing import Final

RELAY: Final = "egress|"
"""What the name of the cluster begins with that leads to its listener, which alone tells of its calls."""
_LISTENER: Final = "egress/"
CONNECT: Final = "CONNECT"
"""The method of what is a connection and no call."""


def listener_name(service: tuple[str, str]) -> str:
    """The name of its listener, by (tenant, name)."""
    return f"{_LISTENER}{'/'.join(service)}"


def service_of(listener: str) -> str:
    """`<tenant>/<name>` of a listener's name; empty for one of anything else."""
    return listener.removeprefix(_LISTENER) if listener.startswith(_LISTENER) else ""
