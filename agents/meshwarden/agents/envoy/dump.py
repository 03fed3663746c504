"""What an Envoy says that it has, by its admin interface's word, without what is secret.

Source: Envoy's admin/v3/config_dump.proto.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from meshwarden.xds import api

Row = dict[str, Any]
"""A resource: `type_url`, `name`, `version` and `body`, its JSON form."""
_DUMP: Final = "type.googleapis.com/envoy.admin.v3."
# {section: (lists in it, field of the resource, its type)}
_LISTS: Final = {
    "ClustersConfigDump": (
        ("static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"),
        "cluster",
        api.CLUSTER,
    ),
    "RoutesConfigDump": (("dynamic_route_configs",), "route_config", api.ROUTE),
    "EcdsConfigDump": (("ecds_filters",), "ecds_filter", api.EXTENSION_CONFIG),
    "EndpointsConfigDump": (("dynamic_endpoint_configs",), "endpoint_config", api.ENDPOINT),
}
_SECRET: Final = frozenset(
    {"private_key", "password", "session_ticket_keys", "secret", "generic_secret", "tls_certificate", "token"}
)
REDACTED: Final = "[redacted]"


class NoDump(Exception):
    """What was said is no configuration; the message says why."""


def read(said: bytes) -> list[Row]:
    """Reads an answer to `/config_dump?include_eds`; whoever has given it.

    Raises:
        NoDump: it is none.
    """
    try:
        sections = json.loads(said)["configs"]
        return [row for section in sections for row in _rows(section)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NoDump(f"no configuration: {type(error).__name__}") from None


def without_secrets(value: Any) -> Any:
    """The same JSON value, with `REDACTED` in place of what is secret."""
    if isinstance(value, dict):
        return {key: REDACTED if key in _SECRET else without_secrets(inner) for key, inner in value.items()}
    return [without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _rows(section: Mapping[str, Any]) -> Iterator[Row]:
    kind = str(section["@type"]).removeprefix(_DUMP)
    if kind == "ListenersConfigDump":
        for item in section.get("dynamic_listeners", ()):
            for state in ("active_state", "warming_state", "draining_state"):
                if state in item:
                    yield _row(api.LISTENER, item[state], "listener", state.removesuffix("_state"))
    elif kind == "SecretsConfigDump":
        for state in ("dynamic_active_secrets", "dynamic_warming_secrets"):
            for item in section.get(state, ()):
                row = {"type_url": api.SECRET, "name": str(item["name"]), "version": str(item.get("version_info", ""))}
                yield {**row, "body": {}}
    elif kind in _LISTS:
        lists, name, type_url = _LISTS[kind]
        for one in lists:
            state = "static" if one.startswith("static") else "warming" if "warming" in one else ""
            for item in section.get(one, ()):
                if name in item:
                    yield _row(type_url, item, name, state)


def _row(type_url: str, item: Mapping[str, Any], field: str, state: str) -> Row:
    body = dict(item[field])
    body.pop("@type", None)
    row = {
        "type_url": type_url,
        "name": str(body.get("name", body.get("cluster_name", ""))),
        "version": str(item.get("version_info", "")),
        "body": without_secrets(body),
    }
    return row | ({"state": state} if state not in ("", "active") else {})
