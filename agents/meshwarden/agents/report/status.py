"""What an agent says of itself and of what runs on its node, to its control plane and to whoever asks it."""

from typing import Final

from meshwarden.agents.attend import Attendants
from meshwarden.agents.attestation.refusal import Refusals, refused_caller
from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.report.health import Health
from meshwarden.agents.upstream import Upstream
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import sharers
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.v1.node_service_pb2 import ConfigAck, WorkloadState
from meshwarden.v1.workload_service_pb2 import AgentStatusResponse

MOST_ERROR_CHARS: Final = 4096


class Status:
    """Reads the parts that know."""

    def __init__(
        self,
        node: str,
        version: str,
        registry: Registry,
        credentials: Credentials,
        scopes: ScopeStore,
        upstream: Upstream,
        attendants: Attendants,
        health: Health,
        refusals: Refusals,
    ) -> None:
        """Remembers whom to ask."""
        self._node, self._version = node, version
        self._registry, self._credentials, self._scopes, self._upstream = registry, credentials, scopes, upstream
        self._attendants, self._health, self._refusals = attendants, health, refusals
        self.ack = ConfigAck()
        """What data planes have last acknowledged."""

    def read(self) -> AgentStatusResponse:
        """How the agent does."""
        failed = {**self._credentials.errors(), **self._scopes.refusals()}
        errors = [f"{name}: {reason}" for name, reason in sorted(failed.items())]
        if self._upstream.last_error:
            errors.insert(0, self._upstream.last_error)
        return AgentStatusResponse(
            node=self._node,
            version=self._version,
            connected=self._upstream.connected,
            last_error="; ".join(errors)[:MOST_ERROR_CHARS],
            revision=self.ack.revision,
            workloads=self.workloads(),
            envoys=self._attendants.envoys(),
            nacks=self.ack.nacks,
            health=self._health.read(),
            refused=map(refused_caller, self._refusals),
        )

    def workloads(self) -> list[WorkloadState]:
        """What runs, and what it holds."""
        workloads = self._registry.workloads
        shared, errors = set(sharers(workloads.values())), self._health.errors()
        return [self._workload(name, name in shared, errors.get(name, "")) for name in sorted(workloads)]

    def _workload(self, name: str, is_shared: bool, error: str) -> WorkloadState:
        workload, svid = self._registry.workloads[name], self._credentials.svid(name)
        state = WorkloadState(
            id=name,
            tenant=workload.entry.metadata.tenant,
            entry=workload.entry.metadata.name,
            pid=workload.pid or self._attendants.envoy_pid(name),
            spiffe_id=str(workload.spiffe_id),
            shares_user=is_shared,
            error=error,
        )
        if svid is not None:
            state.serial = svid.serial
            state.not_before.FromDatetime(svid.not_before)
            state.not_after.FromDatetime(svid.not_after)
        return state
