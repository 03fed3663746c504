"""The configuration of one data plane as a person reads it: as it is to be, as it is, and the difference."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from meshwarden.controlplane.cli import client, render
from meshwarden.v1.data_plane_service_pb2 import DataPlaneState, GetDataPlaneRequest
from meshwarden.v1.node_service_pb2 import XdsResource
from meshwarden.xds import api

TYPES: Final = {
    "listener": api.LISTENER,
    "route": api.ROUTE,
    "cluster": api.CLUSTER,
    "endpoint": api.ENDPOINT,
    "extension": api.EXTENSION_CONFIG,
}
"""{as it is written: type}"""
MAX_LIVE_BYTES: Final = 128 << 20
TIMEOUT_S: Final = 40.0
# What an agent adds by itself.
_OF_AGENT: Final = (api.SECRET, api.RUNTIME)
_WORDS: Final = {type_url: word for word, type_url in TYPES.items()}
_MAX_SAID: Final = 100

Row = Mapping[str, Any]
"""A resource: `type_url`, `name`, `version` and `body`."""


@dataclass
class Config:
    """A data plane's configuration.

    Attributes:
        state: how far it has come.
        resources: what it is to have.
        live: what it has; None if nobody asked, or nobody answered.
        live_error: why nobody did.
        source: who says what it has, "envoy" or "agent".
        refused: what it refuses, in words.
    """

    state: DataPlaneState = field(default_factory=DataPlaneState)
    resources: list[Row] = field(default_factory=list)
    live: list[Row] | None = None
    live_error: str = ""
    source: str = ""
    refused: list[str] = field(default_factory=list)

    def rows(self, kind: str | None) -> list[tuple[Any, ...]]:
        """A row each: type, name, version, what it says, and whether it has the same."""
        shown = [row for row in self.resources if kind is None or row["type_url"] == TYPES[kind]]
        told = [(_word(row), row["name"], row["version"], says(row)) for row in shown]
        if self.live is None:
            return [*told]
        there = _by_name(self.live)
        rows: list[tuple[Any, ...]] = [
            (*one, _compared(row, there.get((row["type_url"], row["name"]))))
            for one, row in zip(told, shown, strict=True)
        ]
        known = _by_name(self.resources)
        for key, row in there.items():
            if key not in known and (kind is None or key[0] == TYPES[kind]):
                rows.append((_word(row), row["name"], row.get("version", ""), says(row), "only there"))
        return rows

    def as_dict(self, kind: str | None = None) -> dict[str, Any]:
        """All of it, for programs."""
        wanted = None if kind is None else TYPES[kind]
        answer: dict[str, Any] = {"state": render.as_dict(self.state)}
        answer["resources"] = [row for row in self.resources if wanted in (None, row["type_url"])]
        if self.live is not None:
            answer["live"] = [row for row in self.live if wanted in (None, row["type_url"])]
            answer["source"], answer["refused"] = self.source, self.refused
            names = ("type", "name", "version", "says", "live")
            answer["difference"] = [dict(zip(names, row, strict=True)) for row in self.rows(kind) if row[-1] != "same"]
        if self.live_error:
            answer["liveError"] = self.live_error
        return answer


def fetch(mesh: client.Client, node: str, data_plane: str, *, live: bool) -> Config:
    """Asks for a data plane's configuration."""
    found, said = Config(), bytearray()
    request = GetDataPlaneRequest(node=node, data_plane=data_plane, live=live)
    for part in mesh.data_plane.GetDataPlane(request, timeout=TIMEOUT_S):
        if part.HasField("state"):
            found.state = part.state
        found.resources += map(_row, part.resources)
        said += part.live
        found.live_error = found.live_error or part.live_error
    if live and not found.live_error:
        _read(found, bytes(said))
    return found


def says(row: Row) -> str:
    """The gist of a resource."""
    body = row.get("body") or {}
    try:
        return str(_SAYS[row["type_url"]](body))[:_MAX_SAID]
    except (KeyError, TypeError, AttributeError, IndexError):  # one of another shape than ours
        return ""


def _row(item: XdsResource) -> Row:
    row: dict[str, Any] = {"type_url": item.type_url, "name": item.name, "version": item.version}
    try:
        row["body"] = api.to_dict(api.parse(item.type_url.rpartition("/")[2], item.body))
    except (api.ApiError, TypeError):  # of a newer control plane
        row["body"] = {}
    return row


def _read(found: Config, said: bytes) -> None:
    """Reads what an agent has said; it may be anything."""
    try:
        reader = zlib.decompressobj()
        answer = json.loads(reader.decompress(said, MAX_LIVE_BYTES))
        if not reader.eof:
            raise ValueError("too large")
        rows: list[Row] = [
            {
                "type_url": str(row["type_url"]),
                "name": str(row["name"]),
                "version": str(row.get("version", "")),
                "state": str(row.get("state", "")),
                "body": row["body"] if isinstance(row.get("body"), dict) else {},
            }
            for row in answer["resources"]
        ]
        refused = [f"{str(one['type_url']).rpartition('.')[2]}: {one['message']}" for one in answer["refused"]]
        found.source = str(answer["source"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        found.live_error = f"the agent's answer can't be read: {type(error).__name__}"
        return
    found.live, found.refused = rows, refused


def _by_name(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """What is compared: neither what a bootstrap has, nor what an agent adds, nor what drains."""
    kept = [
        row for row in rows if row["type_url"] not in _OF_AGENT and row.get("state", "") not in ("static", "draining")
    ]
    return {(row["type_url"], row["name"]): row for row in kept}


def _compared(row: Row, there: Row | None) -> str:
    if there is None:
        return "missing"
    if not there["version"]:  # an Envoy tells no version of endpoints
        return "same"
    return "same" if there["version"] == row["version"] else f"has {there['version']}"


def _word(row: Row) -> str:
    return str(_WORDS.get(row["type_url"], row["type_url"].rpartition(".")[2]))


def _address(value: Any) -> str:
    if "pipe" in value:
        return f"unix:{value['pipe']['path']}"
    socket = value["socket_address"]
    return f"{socket['address']}:{socket['port_value']}"


def _listener(body: Any) -> str:
    return _address(body["address"]) if "address" in body else "for a client"


def _cluster(body: Any) -> str:
    return f"{body.get('type', 'STATIC')} {body.get('lb_policy', 'ROUND_ROBIN')}"


def _endpoints(body: Any) -> str:
    found = [
        f"{_address(one['endpoint']['address'])} {one.get('health_status', 'UNKNOWN')}"
        for place in body.get("endpoints", ())
        for one in place.get("lb_endpoints", ())
    ]
    return ", ".join(found) or "none"


def _route(body: Any) -> str:
    hosts = body.get("virtual_hosts", ())
    return "; ".join(f"{', '.join(host['domains'][:2])} → {_targets(host)}" for host in hosts[:8])


def _targets(host: Any) -> str:
    found: dict[str, None] = {}
    for route in host.get("routes", ()):
        action = route.get("route", {})
        if "cluster" in action:
            found[action["cluster"]] = None
        for part in action.get("weighted_clusters", {}).get("clusters", ()):
            found[f"{part['name']} {part.get('weight', 0)}"] = None
    return ", ".join(found) or "nothing"


def _extension(body: Any) -> str:
    return str(body["typed_config"]["@type"]).rpartition(".")[2]


_SAYS: Final = {
    api.LISTENER: _listener,
    api.CLUSTER: _cluster,
    api.ENDPOINT: _endpoints,
    api.ROUTE: _route,
    api.EXTENSION_CONFIG: _extension,
}
