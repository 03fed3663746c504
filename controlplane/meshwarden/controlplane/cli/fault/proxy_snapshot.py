"""What `meshwarden proxy snapshot` writes: a tar.gz without a key, a token or a secret in it."""

import io
import json
import re
import tarfile
from typing import Any, BinaryIO, Final

import grpc

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli import client, render
from meshwarden.controlplane.cli.fault.proxy_config import fetch
from meshwarden.v1.admin_service_pb2 import GetStatusRequest
from meshwarden.v1.data_plane_service_pb2 import ListDataPlanesRequest
from meshwarden.v1.revision_service_pb2 import GetProgressRequest

REDACTED: Final = "[redacted]"
# Nothing of the kind is asked for; what programs and data planes say in their own words may hold anything.
_SECRETS: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|\b(?:hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}"
    r"|(?i:bearer)\s+[A-Za-z0-9._~+/-]{16,}=*",
    re.DOTALL,
)


def write(mesh: client.Client, file: BinaryIO, node: str, tenant: str) -> tuple[int, list[str]]:
    """Writes a snapshot; returns how many data planes are in it, and what each could not say that could not.

    Args:
        mesh: the mesh.
        file: where to.
        node: only its data planes; empty for all.
        tenant: likewise.
    """
    planes = mesh.data_plane.ListDataPlanes(ListDataPlanesRequest(node=node, tenant=tenant), timeout=client.TIMEOUT_S)
    status = mesh.admin.GetStatus(GetStatusRequest(tenant=tenant), timeout=client.TIMEOUT_S)
    progress = mesh.revision.GetProgress(GetProgressRequest(tenant=tenant), timeout=client.TIMEOUT_S)
    failed: list[str] = []
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        _add(archive, "status.json", render.as_dict(status))
        _add(archive, "progress.json", render.as_dict(progress))
        _add(archive, "data_planes.json", render.as_dict(planes))
        for state in planes.data_planes:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{state.node}_{state.ref.id}")
            try:
                found = fetch(mesh, state.node, state.ref.id, live=True)
            except grpc.RpcError as error:  # it has gone meanwhile
                failed.append(f"{state.ref.id}: {error}")
                continue
            if found.live_error:
                failed.append(f"{state.node}: {found.live_error}")
            _add(archive, f"config/{name}.json", found.as_dict())
    return len(planes.data_planes), failed


def scrub(value: Any) -> Any:
    """The same JSON value, with `REDACTED` in place of what looks like a key or a token."""
    if isinstance(value, str):
        return _SECRETS.sub(REDACTED, value)
    if isinstance(value, dict):
        return {scrub(key): scrub(inner) for key, inner in value.items()}
    return [scrub(inner) for inner in value] if isinstance(value, list) else value


def _add(archive: tarfile.TarFile, name: str, value: Any) -> None:
    content = json.dumps(scrub(value), indent=1, ensure_ascii=False).encode()
    info = tarfile.TarInfo(f"meshwarden-proxy/{name}")
    info.size, info.mode, info.mtime = len(content), 0o600, int(utc_now().timestamp())
    archive.addfile(info, io.BytesIO(content))
