"""Which service each name stands for that a program may dial, read off the Listeners that it is given anyway."""

import functools
from typing import Any

from meshwarden.xds import api
from meshwarden.xds.snapshot import Snapshot


def names(snapshot: Snapshot | None) -> dict[str, str]:
    """The names and their services: {"orders": "platform/orders", "orders.platform": "platform/orders"}."""
    if snapshot is None:
        return {}
    found = {name: _service(item.body) for name, item in snapshot.named(api.LISTENER).items()}
    return {name: service for name, service in found.items() if service}


@functools.lru_cache(maxsize=16_384)
def _service(listener: bytes) -> str:
    """The service behind a client's Listener, whose routes bear its name; empty for a server's."""
    parsed: Any = api.parse("envoy.config.listener.v3.Listener", listener)
    if not parsed.HasField("api_listener"):
        return ""
    manager: Any = api.unpack(parsed.api_listener.api_listener)
    service, dot, tenant = manager.rds.route_config_name.partition(".")
    return f"{tenant}/{service}" if dot else ""
