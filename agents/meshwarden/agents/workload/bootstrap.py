"""What a program needs in order to join the mesh: gRPC's xDS bootstrap, and the environment that points to it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshwarden.agents.workload.credential_files import BUNDLES

PROVIDER: Final = "meshwarden"
"""The certificate provider instance that every TLS context of ours names."""
SERVER_LISTENER: Final = "grpc/server?xds.resource.listening_address=%s"
_REFRESH: Final = "1s"  # C-core's shortest; the default of 10 minutes outlives a short SVID


@dataclass(frozen=True)
class NodePlace:
    """Where a workload runs, as its data planes are told.

    Attributes:
        node: the node's name.
        region: the control plane's region.
        zone: the zone within it.
        agent_socket: serves xDS, reports and OTLP.
        workload_api_socket: serves the SPIFFE Workload API.
    """

    node: str
    region: str
    zone: str
    agent_socket: Path
    workload_api_socket: Path


def grpc_bootstrap(place: NodePlace, data_plane: str, service: str, credentials: Path) -> dict[str, Any]:
    """The bootstrap for C-core and grpc-js.

    Args:
        place: where the workload runs.
        data_plane: the data plane's id; for the log alone, since the agent knows its callers by the kernel's word.
        service: `<service>.<tenant>`.
        credentials: the directory with tls.crt, tls.key and ca.crt.

    Source: gRFC A27 (bootstrap), A29 (certificate providers), A36 (server listener template), A87 (SPIFFE bundle maps).
    """
    return {
        "xds_servers": [
            {
                "server_uri": f"unix:{place.agent_socket}",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3", "ignore_resource_deletion"],
            }
        ],
        # Node's client refuses a bootstrap without a locality.
        "node": {
            "id": data_plane,
            "cluster": service,
            "locality": {"region": place.region, "zone": place.zone},
        },
        "server_listener_resource_name_template": SERVER_LISTENER,
        "certificate_providers": {
            PROVIDER: {
                "plugin_name": "file_watcher",
                "config": {
                    "certificate_file": str(credentials / "tls.crt"),
                    "private_key_file": str(credentials / "tls.key"),
                    "ca_certificate_file": str(credentials / "ca.crt"),
                    # C-core takes this one, if its environment says so; whoever doesn't know it trusts ours alone.
                    "spiffe_bundle_map_file": str(credentials / BUNDLES),
                    "refresh_interval": _REFRESH,
                },
            }
        },
    }


def write_grpc_bootstrap(path: Path, bootstrap: Mapping[str, Any]) -> None:
    """Writes a bootstrap; whoever reads the file meanwhile sees the old one or the new one."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(bootstrap, indent=1))
    draft.chmod(0o644)  # holds no secret, and the workload may be of another uid
    draft.replace(path)


def environment(
    place: NodePlace, bootstrap: Path, credentials: Path, service: str, port: int, outbound: Path | None
) -> dict[str, str]:
    """The variables for a program.

    Args:
        place: where the workload runs.
        bootstrap: the file of `write_grpc_bootstrap`.
        credentials: the directory with tls.crt, tls.key and ca.crt.
        service: `<service>.<tenant>`.
        port: where the program listens; 0 if it only calls.
        outbound: its Envoy's socket for calls into the mesh; None without an Envoy.
    """
    variables = {
        "GRPC_XDS_BOOTSTRAP": str(bootstrap),
        "GRPC_XDS_EXPERIMENTAL_RBAC": "true",  # without it a Node server refuses its listener
        "GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE": "true",  # without it C-core knows our own trust domain alone
        "SPIFFE_ENDPOINT_SOCKET": f"unix://{place.workload_api_socket}",
        "MESHWARDEN_AGENT_SOCKET": str(place.agent_socket),
        "MESHWARDEN_CREDENTIALS": str(credentials),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"unix://{place.agent_socket}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",  # the kernel vouches for both ends; exporters would speak TLS
        "OTEL_SERVICE_NAME": service,
    }
    if port:
        variables["MESHWARDEN_PORT"] = str(port)
    if outbound is not None:
        variables["MESHWARDEN_OUTBOUND"] = str(outbound)
    return variables
