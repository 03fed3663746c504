"""ListNodes, BanNode, UnbanNode, EvictNode and ForgetNode of AdminService."""

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.identity.roster import Roster
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.resources import model
from meshwarden.v1 import admin_service_pb2 as v1

SERVICE = "/meshwarden.v1.AdminService/"


class NodeDesk:
    """Answers operators of the mesh about its nodes."""

    def __init__(self, roster: Roster, sessions: Sessions, publisher: Publisher) -> None:
        self._roster, self._sessions, self._publisher = roster, sessions, publisher

    def listed(self, caller: SpiffeId | None, request: v1.ListNodesRequest) -> v1.ListNodesResponse:
        """Shows the nodes that have joined or are banned."""
        authorize(caller, SERVICE + "ListNodes", None)
        states = {state.node: state for state in self._sessions.states()}
        joined, bans = self._sessions.joined, self._sessions.bans
        answer = v1.ListNodesResponse()
        for name in sorted({*joined, *bans}):
            member = answer.nodes.add(node=name)
            if (state := states.get(name)) is not None:
                member.connected = state.connected
                if state.HasField("last_seen"):
                    member.last_seen.CopyFrom(state.last_seen)
            if (record := joined.get(name)) is not None:
                member.attestor, member.address = record.attestor, record.address
                member.tenants.extend(record.tenants)
                member.join_time.FromDatetime(record.join_time)
            if (ban := bans.get(name)) is not None:
                member.ban.by, member.ban.reason = ban.by, ban.reason
                member.ban.time.FromDatetime(ban.time)
        return answer

    async def ban(self, caller: SpiffeId | None, request: v1.BanNodeRequest) -> v1.BanNodeResponse:
        """Bans a node."""
        authorize(caller, SERVICE + "BanNode", None)
        return v1.BanNodeResponse(denied=await self._roster.ban(request.node, request.reason, str(caller)))

    async def unban(self, caller: SpiffeId | None, request: v1.UnbanNodeRequest) -> v1.UnbanNodeResponse:
        """Takes a ban back."""
        authorize(caller, SERVICE + "UnbanNode", None)
        await self._roster.unban(request.node, str(caller))
        return v1.UnbanNodeResponse()

    async def evict(self, caller: SpiffeId | None, request: v1.EvictNodeRequest) -> v1.EvictNodeResponse:
        """Has a node attest again."""
        authorize(caller, SERVICE + "EvictNode", None)
        await self._roster.evict(request.node, request.reason, str(caller))
        return v1.EvictNodeResponse()

    async def forget(self, caller: SpiffeId | None, request: v1.ForgetNodeRequest) -> v1.ForgetNodeResponse:
        """Removes what is left of a node that is gone."""
        authorize(caller, SERVICE + "ForgetNode", None)
        keys = [
            f"{model.ROOT}{key.kind}/{key.tenant}/{key.name}" for key in self._publisher.mesh.endpoints_on(request.node)
        ]
        state = next((state for state in self._sessions.states() if state.node == request.node), None)
        is_connected = state is not None and state.connected
        await self._roster.forget(
            request.node, keys, str(caller), is_known=state is not None, is_connected=is_connected
        )
        self._sessions.forget(request.node)
        return v1.ForgetNodeResponse(endpoints=len(keys))
