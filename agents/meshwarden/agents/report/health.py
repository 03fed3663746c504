"""What is wrong on a node, gathered from all who notice: for the control plane, for `status` and for `doctor`."""

import asyncio
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from meshwarden.agents.attend import Attendants
from meshwarden.agents.attestation.refusal import Refusals
from meshwarden.agents.cache import Cache
from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.identity.node import NodeIdentity
from meshwarden.agents.telemetry.clear import ClearCallers
from meshwarden.agents.telemetry.spool import Spool
from meshwarden.agents.upstream import Upstream
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.secret import Secrets
from meshwarden.agents.xds.data_plane import DataPlanes
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.v1 import node_service_pb2 as node_pb

_MAX_TEXT: Final = 1024
_MAX_ITEMS: Final = 64
_MAX_CLEAR: Final = 256
_MIB: Final = 1 << 20
_FEW_MIB: Final = 8  # left on a disk
_PATIENCE_S: Final = 5.0


class Health:
    """Reads how the parts of an agent do."""

    def __init__(
        self,
        state_dir: Path,
        registry: Registry,
        identity: NodeIdentity,
        upstream: Upstream,
        credentials: Credentials,
        scopes: ScopeStore,
        attendants: Attendants,
        cache: Cache,
        spool: Spool,
        refusals: Refusals,
        secrets: Secrets,
    ) -> None:
        """Keeps whom to ask."""
        self._state_dir, self._registry, self._identity, self._upstream = state_dir, registry, identity, upstream
        self._credentials, self._scopes, self._attendants = credentials, scopes, attendants
        self._cache, self._spool = cache, spool
        self._refusals, self._secrets = refusals, secrets
        self._planes: DataPlanes | None = None
        self._clear: ClearCallers | None = None
        self._since_s: dict[str, float] = {}
        self._held_since_s: dict[str, float] = {}

    def watch(self, planes: DataPlanes, clear: ClearCallers | None = None) -> None:
        """Reads of these data planes too, and of who calls in the clear, from now on."""
        self._planes, self._clear = planes, clear

    def read(self) -> node_pb.AgentHealth:
        """How the agent does."""
        health = node_pb.AgentHealth(
            renewal_error=self._upstream.renewal_error[:_MAX_TEXT],
            disk_error=self._disk_error()[:_MAX_TEXT],
            waiting=self._waiting()[:_MAX_ITEMS],
        )
        health.not_after.FromDatetime(self._identity.present.svid.not_after)
        sizes = sorted(self._spool.sizes().items(), key=lambda item: -item[1])
        for tenant, size in sizes[:_MAX_ITEMS]:
            if size >= _MIB:
                health.spools.add(tenant=tenant, size_mib=size // _MIB, limit_mib=self._spool.tenant_bytes // _MIB)
        for refused in self._refusals:
            tenant, _, entry = refused.entry.partition("/")
            selectors = [misfit.selector for misfit in refused.misfits if misfit.selector]
            health.refused.add(tenant=tenant, entry=entry, selectors=selectors, count=refused.count)
        rows = islice(self._clear.rows(), _MAX_CLEAR) if self._clear is not None else ()
        for service, address, seen in rows:
            tenant, _, name = service.partition("/")
            row = health.clear_callers.add(tenant=tenant, service=name, address=address, count=seen.count)
            row.last.FromDatetime(seen.last)
        return health

    def errors(self) -> Mapping[str, str]:
        """What is wrong with workloads: `{workload id: reason}`."""
        said = {**self._held_back(), **self._credentials.errors(), **self._scopes.refusals()}
        found: dict[str, str] = {}
        attended, unread = self._attendants.errors(), self._secrets.errors()
        for name, workload in self._registry.workloads.items():
            # A certificate is an entry's, files are a workload's, and configuration is a data plane's.
            reasons = [said[key] for key in (workload.entry_name, name, f"{name}/grpc", f"{name}/envoy") if key in said]
            reasons += [attended[name]] if name in attended else []
            reasons += [unread[workload.entry_name]] if workload.entry_name in unread else []
            if reasons:
                found[name] = "; ".join(dict.fromkeys(reasons))[:_MAX_TEXT]
        return found

    def _disk_error(self) -> str:
        refusals = (self._spool.refusal, self._cache.refusal, self._scopes.refusal, self._identity.refusal)
        found = next((reason for reason in refusals if reason), "")
        if found:
            return f"{self._state_dir}: {found}"
        try:
            disk = os.statvfs(self._state_dir)
        except OSError as error:
            return str(error)
        left = disk.f_bavail * disk.f_frsize
        return f"{self._state_dir}: less than {_FEW_MIB} MiB are left" if left < _FEW_MIB * _MIB else ""

    def _waiting(self) -> list[str]:
        """The data planes that have not answered for a while; one that is just being told is not among them."""
        now_s = asyncio.get_running_loop().time()
        waiting = self._planes.waiting() if self._planes is not None else set()
        self._since_s = {name: self._since_s.get(name, now_s) for name in waiting}
        return sorted(name for name, since_s in self._since_s.items() if now_s - since_s >= _PATIENCE_S)

    def _held_back(self) -> dict[str, str]:
        """The programs that have long not become what their entries want; `exec` itself never is."""
        now_s, held = asyncio.get_running_loop().time(), self._registry.held_back()
        self._held_since_s = {name: self._held_since_s.get(name, now_s) for name in held}
        return {
            name: f"its program does not fit its entry: {reason}"
            for name, reason in held.items()
            if now_s - self._held_since_s[name] >= _PATIENCE_S
        }
