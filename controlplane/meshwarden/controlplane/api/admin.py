"""AdminService: joining nodes, looking at the mesh, asking why."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import grpc

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.controlplane.api.bundles import BundleDesk
from meshwarden.controlplane.api.certificate import CertificateDesk
from meshwarden.controlplane.api.deny import DenyDesk
from meshwarden.controlplane.api.dry_run import dry_runs
from meshwarden.controlplane.api.edges import edge_warnings, permissive_states
from meshwarden.controlplane.api.errors import InvalidRequest, NotFound
from meshwarden.controlplane.api.gaps import policy_gaps, say_unheld
from meshwarden.controlplane.api.health import Health
from meshwarden.controlplane.api.jwt_keys import JwtKeyDesk
from meshwarden.controlplane.api.nodes import NodeDesk
from meshwarden.controlplane.api.revision import described
from meshwarden.controlplane.api.roots import RootDesk
from meshwarden.controlplane.api.unknown import require_callee, say_unknown_caller
from meshwarden.controlplane.api.validation import moment
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph import query as graph_query
from meshwarden.controlplane.gather.graph.remote import Remote
from meshwarden.controlplane.gather.trace.query import Place, Question, nanoseconds
from meshwarden.controlplane.identity.authorize import authorize, sees
from meshwarden.controlplane.identity.deny import Denies
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.identity.issued import Issued
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.identity.roster import Roster
from meshwarden.controlplane.identity.rotation import RootRotation
from meshwarden.controlplane.policy.endpoint import state_of
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.quota.division import Division
from meshwarden.controlplane.regions.regions import Regions
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.store.port import Store
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.tracing import own_span
from meshwarden.v1 import admin_service_pb2 as v1
from meshwarden.v1 import admin_service_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

TOKEN_TTL = timedelta(minutes=10)
LEDGER_SPAN = timedelta(hours=1)
LEDGER_ROWS = 1000
GRAPH_WINDOW = timedelta(minutes=5)
TRACES_SPAN = timedelta(hours=1)
TRACES = 20
# A session that has lost its clock by more than this is worth a word: certificates are backdated by a minute.
SKEW_WARNING = timedelta(seconds=30)


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """Answers operators; an operator of a tenant is shown that tenant alone."""

    def __init__(
        self,
        *,
        trust_domain: str,
        region: str,
        version: str,
        authority: Authority,
        store: Store,
        tokens: JoinTokens,
        publisher: Publisher,
        sessions: Sessions,
        gather: Gather,
        remote: Remote,
        regions: Regions,
        division: Division,
        audit: AuditLog,
        denies: Denies,
        deny_watch: DenyWatch,
        rotation: RootRotation,
        jwt: JwtAuthority,
        bundles: BundleDesk,
        roster: Roster,
        health: Health,
        clock: Callable[[], datetime],
    ) -> None:
        self._trust_domain, self._region, self._version = trust_domain, region, version
        self._authority, self._store, self._tokens = authority, store, tokens
        self._publisher, self._sessions, self._gather = publisher, sessions, gather
        self._remote, self._regions, self._division = remote, regions, division
        self._audit, self._health, self._clock = audit, health, clock
        self._desk = DenyDesk(denies, deny_watch, sessions, trust_domain, clock)
        self._certificates = CertificateDesk(Issued(store, clock), deny_watch, sessions, clock)
        self._roots, self._bundles = RootDesk(rotation, clock), bundles
        self._jwt_keys = JwtKeyDesk(jwt, clock)
        self._nodes_desk = NodeDesk(roster, sessions, publisher)

    async def CreateJoinToken(self, request: v1.CreateJoinTokenRequest, context: Context) -> v1.CreateJoinTokenResponse:
        caller = _caller()
        authorize(caller, "/meshwarden.v1.AdminService/CreateJoinToken", None)
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else TOKEN_TTL
        token = await self._tokens.create(request.node, ttl, request.tenants)
        about = {"node": request.node, "tenants": list(request.tenants), "ttl_s": ttl.total_seconds()}
        await self._audit.record("token.create", **about, by=str(caller))
        answer = v1.CreateJoinTokenResponse(token=token, bundle=(await self._authority.bundle()).to_proto())
        answer.expire_time.FromDatetime(self._clock() + ttl)
        return answer

    async def GetStatus(self, request: v1.GetStatusRequest, context: Context) -> v1.GetStatusResponse:
        shown = _shown("GetStatus", request.tenant)
        nodes = [self._node(state, shown, is_whole=_is_operator()) for state in self._sessions.states()]
        answer = v1.GetStatusResponse(
            trust_domain=self._trust_domain,
            region=self._region,
            revision=self._publisher.revision,
            version=self._version,
            nodes=nodes,
            tenants=[
                v1.TenantState(tenant=tenant, allowed_per_s=allowed, limited_per_s=limited, denied_per_s=denied)
                for tenant, (allowed, limited, denied) in sorted(self._gather.rates().items())
                if shown(tenant)
            ],
            warnings=[text for node in nodes for text in _warnings(node, self._publisher.revision)],
            authority=self._authority.description,
            regions=self._states(),
            ambiguous_names=self._ambiguous(shown),
            gaps=policy_gaps(self._publisher.mesh, self._sessions.states(), shown),
            dry_runs=dry_runs(self._gather.dry_runs, shown),
            health=self._health.read() if _is_operator() else None,
        )
        answer.warnings.extend(self._bundles.home_only(nodes))
        if _is_operator():
            answer.warnings.extend(self._regions.warnings())
            answer.roots.extend(self._roots.states())
            answer.foreign.extend(self._bundles.states())
            answer.warnings.extend(self._bundles.warnings())
            answer.warnings.extend(f"node {node} is banned" for node in sorted(self._sessions.bans))
        answer.warnings.extend(_drains(self._publisher.mesh, shown))
        edges = self._publisher.mesh, self._sessions.states(), shown, self._clock()
        answer.permissive.extend(permissive_states(*edges))
        answer.warnings.extend(edge_warnings(edges[0], answer.permissive, *edges[2:]))
        answer.now.FromDatetime(self._clock())
        return answer

    async def Explain(self, request: v1.ExplainRequest, context: Context) -> v1.ExplainResponse:
        caller = _caller()
        source, destination = (name.partition("/")[0] for name in (getattr(request, "from"), request.to))
        # A denied caller is told to ask: its own operator may.
        tenant = source if sees(caller, source) else destination
        authorize(caller, "/meshwarden.v1.AdminService/Explain", tenant)
        mesh, shown, now_s = self._publisher.mesh, (lambda tenant: sees(caller, tenant)), self._clock().timestamp()
        require_callee(mesh, request.to, shown)
        answer = explain(mesh, request, shown, now_s, is_staged=True)
        say_unheld(answer, mesh, self._sessions.states(), request.to)
        say_unknown_caller(answer, mesh, getattr(request, "from"), shown)
        answer.revision = self._publisher.revision
        return answer

    async def ListCalls(self, request: v1.ListCallsRequest, context: Context) -> v1.ListCallsResponse:
        caller = _caller()
        tenant = request.tenant or (caller.tenant if caller is not None else None) or ""
        authorize(caller, "/meshwarden.v1.AdminService/ListCalls", tenant or None)
        end = moment(request.end, "end") if request.HasField("end") else self._clock()
        start = moment(request.start, "start") if request.HasField("start") else end - LEDGER_SPAN
        rows = await self._gather.ledger.list(start, end, tenant, request.limit or LEDGER_ROWS)
        return v1.ListCallsResponse(calls=rows, regions=self._states())

    async def GetGraph(self, request: v1.GetGraphRequest, context: Context) -> v1.GetGraphResponse:
        shown = _shown("GetGraph", request.tenant)
        question = graph_query.Question(
            window=request.window.ToTimedelta() if request.HasField("window") else GRAPH_WINDOW,
            service=request.service,
            limit=request.limit or graph_query.MAX_EDGES,
        )
        answer = v1.GetGraphResponse(region=self._region, regions=self._states())
        await graph_query.fill(answer, [self._gather.graph, *self._remote.graphs().values()], question, shown)
        answer.nodes.extend(self._nodes(request.service, answer.edges, shown))
        answer.window.FromTimedelta(question.window)
        answer.now.FromDatetime(self._clock())
        return answer

    async def SearchTraces(self, request: v1.SearchTracesRequest, context: Context) -> v1.SearchTracesResponse:
        shown = _shown("SearchTraces", request.tenant)
        end = moment(request.end, "end") if request.HasField("end") else self._clock()
        start = moment(request.start, "start") if request.HasField("start") else end - TRACES_SPAN
        question = Question(
            service=request.service,
            failed=request.failed,
            longest_ns=request.min_duration.ToNanoseconds(),
            start_ns=nanoseconds(start),
            end_ns=nanoseconds(end),
        )
        try:
            after = Place.parse(request.page_token) if request.page_token else None
        except ValueError:
            raise InvalidRequest([FieldFault("pageToken", "must be what a page before has said")]) from None
        found, last = await self._gather.traces.search(question, shown, request.page_size or TRACES, after)
        return v1.SearchTracesResponse(
            traces=found, next_page_token=str(last) if last is not None else "", region=self._region
        )

    async def GetTrace(self, request: v1.GetTraceRequest, context: Context) -> v1.GetTraceResponse:
        shown = _shown("GetTrace", request.tenant)
        trace_id = bytes.fromhex(request.trace_id) or None
        if request.revision:
            trace_id = await self._gather.changes.find(request.revision)
        found = await self._gather.traces.find(trace_id, shown) if trace_id is not None else None
        if found is None and request.revision:
            why = await described(self._store, request.revision, shown, is_whole=_is_operator() and not request.tenant)
            raise NotFound(f"no span of a change that made revision {request.revision} is here: {why}")
        if found is None:
            raise NotFound(f"no span of trace {request.trace_id} is here: not yet, not any more, or not for you to see")
        found.region = self._region
        if request.revision and trace_id is not None:
            since_ns = min(span.start.ToNanoseconds() for span in found.spans)
            found.calls.extend(await self._gather.traces.under(request.revision, since_ns, trace_id, shown))
        return found

    async def GetQuotas(self, request: v1.GetQuotasRequest, context: Context) -> v1.GetQuotasResponse:
        caller, division = _caller(), self._division
        authorize(caller, "/meshwarden.v1.AdminService/GetQuotas", request.tenant or None)
        answer = v1.GetQuotasResponse(divides=division.leases is not None)
        answer.learns = division.leases is not None and division.leases.learns(division.now_s())
        answer.now.FromDatetime(self._clock())
        for policy in division.policies():
            if request.policy in ("", policy):
                whole = sees(caller, policy.partition("/")[0])
                answer.quotas.extend(division.states(policy, _asked(caller, request.tenant, whole=whole), whole=whole))
        return answer

    async def RenewSvids(self, request: v1.RenewSvidsRequest, context: Context) -> v1.RenewSvidsResponse:
        caller = _caller()
        authorize(caller, "/meshwarden.v1.AdminService/RenewSvids", None)
        nodes = self._sessions.renew_all(request.reason or "an operator asked")
        await self._audit.record("svid.renew_all", reason=request.reason, nodes=nodes, by=str(caller))
        return v1.RenewSvidsResponse(nodes=nodes, trace_id=own_span.present_trace_id())

    async def Deny(self, request: v1.DenyRequest, context: Context) -> v1.DenyResponse:
        return await self._desk.deny(_caller(), request)

    async def Allow(self, request: v1.AllowRequest, context: Context) -> v1.AllowResponse:
        return await self._desk.allow(_caller(), request)

    async def ListDenied(self, request: v1.ListDeniedRequest, context: Context) -> v1.ListDeniedResponse:
        return self._desk.listed(_caller(), request)

    async def ListCertificates(
        self, request: v1.ListCertificatesRequest, context: Context
    ) -> v1.ListCertificatesResponse:
        return await self._certificates.listed(_caller(), request)

    async def ListRoots(self, request: v1.ListRootsRequest, context: Context) -> v1.ListRootsResponse:
        return self._roots.listed(_caller())

    async def ChangeRoot(self, request: v1.ChangeRootRequest, context: Context) -> v1.ListRootsResponse:
        return await self._roots.change(_caller(), request)

    async def ListBundles(self, request: v1.ListBundlesRequest, context: Context) -> v1.ListBundlesResponse:
        return await self._bundles.listed(_caller())

    async def ListJwtKeys(self, request: v1.ListJwtKeysRequest, context: Context) -> v1.ListJwtKeysResponse:
        return self._jwt_keys.listed(_caller())

    async def ChangeJwtKey(self, request: v1.ChangeJwtKeyRequest, context: Context) -> v1.ListJwtKeysResponse:
        return await self._jwt_keys.change(_caller(), request)

    async def ListNodes(self, request: v1.ListNodesRequest, context: Context) -> v1.ListNodesResponse:
        return self._nodes_desk.listed(_caller(), request)

    async def BanNode(self, request: v1.BanNodeRequest, context: Context) -> v1.BanNodeResponse:
        return await self._nodes_desk.ban(_caller(), request)

    async def UnbanNode(self, request: v1.UnbanNodeRequest, context: Context) -> v1.UnbanNodeResponse:
        return await self._nodes_desk.unban(_caller(), request)

    async def EvictNode(self, request: v1.EvictNodeRequest, context: Context) -> v1.EvictNodeResponse:
        return await self._nodes_desk.evict(_caller(), request)

    async def ForgetNode(self, request: v1.ForgetNodeRequest, context: Context) -> v1.ForgetNodeResponse:
        return await self._nodes_desk.forget(_caller(), request)

    def _states(self) -> list[v1.RegionState]:
        return self._regions.states(whole=_is_operator())

    def _nodes(
        self, service: str, edges: Iterable[v1.GraphEdge], shown: Callable[[str], bool]
    ) -> Iterator[v1.GraphNode]:
        names = (name for name in self._publisher.mesh.callees() if shown(name.tenant))
        if service:
            ends = {service, *(end for edge in edges for end in (edge.source, edge.destination))}
            names = (name for name in names if str(name) in ends or name.name == service)
        return map(self._service, names)

    def _service(self, name: Name) -> v1.GraphNode:
        mesh = self._publisher.mesh
        endpoints = mesh.of_service("Endpoint", name)
        healthy = sum(state_of(mesh, key, item.spec) == "HEALTHY" for key, item in endpoints.items())
        return v1.GraphNode(service=str(name), healthy_endpoints=healthy, endpoints=len(endpoints))

    def _ambiguous(self, shown: Callable[[str], bool]) -> Iterator[v1.AmbiguousName]:
        mesh = self._publisher.mesh
        for tenant in sorted({key.tenant for key in mesh.all() if key.kind == "WorkloadEntry" and shown(key.tenant)}):
            for short, services in mesh.ambiguous_names(tenant).items():
                yield v1.AmbiguousName(tenant=tenant, name=short, services=map(str, services))

    @staticmethod
    def _node(state: v1.NodeState, shown: Callable[[str], bool], *, is_whole: bool) -> v1.NodeState:
        """The node without what the caller may not see; what concerns the node itself only where all of it is seen."""
        copy = v1.NodeState()
        copy.CopyFrom(state)
        for field in (copy.workloads, copy.data_planes):
            kept = [item for item in field if shown(item.tenant)]
            del field[:]
            field.extend(kept)  # type: ignore[arg-type]
        copy.tenants[:] = [tenant for tenant in copy.tenants if shown(tenant)]
        ids = {ref.id for ref in copy.data_planes}
        nacks = [nack for nack in copy.nacks if nack.data_plane in ids]
        del copy.nacks[:]
        copy.nacks.extend(nacks)
        spools = [spool for spool in copy.health.spools if shown(spool.tenant)]
        waiting = [name for name in copy.health.waiting if name in ids]
        refused = [item for item in copy.health.refused if shown(item.tenant)]
        if not is_whole:
            copy.ClearField("health")
        copy.health.ClearField("spools")
        copy.health.ClearField("waiting")
        copy.health.ClearField("refused")
        copy.health.spools.extend(spools)
        copy.health.waiting.extend(waiting)
        copy.health.refused.extend(refused)
        return copy


def _shown(method: str, asked: str) -> Callable[[str], bool]:
    """Whose things to show of a method's answer: what the caller may see, and of that the tenant that it asks for.

    Raises:
        Denied: it may not ask for that tenant.
    """
    caller = _caller()
    authorize(caller, f"/meshwarden.v1.AdminService/{method}", asked or None)
    return lambda tenant: sees(caller, tenant) and asked in ("", tenant)


def _asked(caller: SpiffeId | None, asked: str, *, whole: bool) -> Callable[[str], bool]:
    """Which calling tenants' buckets to show of a policy, all of which the caller may see or not."""
    return lambda tenant: (whole or sees(caller, tenant)) and asked in ("", tenant)


def _caller() -> SpiffeId | None:
    verified = peer.current()
    return verified.spiffe_id if verified is not None else None


def _is_operator() -> bool:
    caller = _caller()
    return caller is not None and caller.role is Role.OPERATOR


def _drains(mesh: Mesh, shown: Callable[[str], bool]) -> Iterator[str]:
    """Which endpoints get no new calls for an operator's sake."""
    for key in mesh.drains.all():
        if shown(key.tenant):
            found = mesh.drained(key)
            services = ", ".join(sorted({item.spec.service for item in found})) or "no service"
            yield f"Drain {key.tenant}/{key.name}: {len(found)} endpoints of {services} get no new calls"


def _warnings(node: v1.NodeState, revision: int) -> list[str]:
    """What an operator should know of a node."""
    found = []
    if not node.connected and not node.control_plane:
        found.append(f"node {node.node} is not connected; its workloads go on with what they have")
    elif node.connected and node.acked_revision < revision:
        found.append(f"node {node.node} is behind: {node.acked_revision} of {revision}")
    skew = node.clock_skew.ToTimedelta()
    if abs(skew) > SKEW_WARNING:
        found.append(f"the clock of node {node.node} is {skew.total_seconds():+.0f} s off ours")
    for nack in node.nacks:
        what = f"{nack.type_url.rpartition('.')[2]} {nack.resource}".rstrip()
        found.append(f"{nack.data_plane} refused {what}: {nack.message}")
    sharing = [state.id for state in node.workloads if state.shares_user]
    if sharing:
        found.append(
            f"{len(sharing)} workloads on node {node.node} share a uid and can read each other's memory "
            f"(insecureSameUser): {', '.join(sharing[:4])}{' …' if len(sharing) > 4 else ''}"
        )
    return found
