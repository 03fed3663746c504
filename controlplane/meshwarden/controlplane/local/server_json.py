"""What `server.json` says: where a control plane listens, once it does."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerAddress:
    """Where it listens."""

    address: str
    metrics_url: str
    rest_url: str
    ca_file: Path


def read(path: Path) -> tuple[ServerAddress, int] | None:
    """Returns the address and the process that listens there; None if none does. The last release has no `rest_url`."""
    try:
        said = json.loads(path.read_text())
        urls = str(said["metrics_url"]), str(said.get("rest_url", ""))
        address = ServerAddress(str(said["address"]), *urls, Path(said["ca_file"]))
        return address, int(said["pid"])
    except FileNotFoundError:
        return None
