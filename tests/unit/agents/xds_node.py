"""A node's data plane side, and a data plane that speaks to it, for the tests of the agent's ADS."""

import asyncio
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.agents.attestation.refusal import Refusals
from meshwarden.agents.cache import Cache
from meshwarden.agents.identity.credentials import Credentials
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.workload.attest import Attestor
from meshwarden.agents.workload.leaving import LeaveStream, Leaving
from meshwarden.agents.workload.planes import Planes
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.secret import Secrets
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.xds.data_plane import DataPlanes
from meshwarden.agents.xds.in_force import InForce
from meshwarden.agents.xds.interest import Interest
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import parse_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.mtls.connection import Connection, start_time
from meshwarden.sdk.mtls.front import Front
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as pb
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

DOMAIN = "mesh.test"
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
REQUEST = "envoy.service.discovery.v3.DiscoveryRequest"
RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"


def cluster(name: str, timeout_s: float = 1.0) -> Resource:
    return resource(
        api.build("envoy.config.cluster.v3.Cluster", {"name": name, "connect_timeout": f"{timeout_s}s"}), name
    )


def entry(envoy: bool = False, **selectors: Any) -> node_pb.EntrySet:
    metadata = pb.Metadata(tenant="acme", name="web")
    plane = pb.WorkloadEntrySpec.ENVOY if envoy else pb.WorkloadEntrySpec.PROXYLESS
    spec = pb.WorkloadEntrySpec(
        service="web", nodes=["n"], selectors=pb.Selectors(uid=os.geteuid(), **selectors), data_plane=plane
    )
    service = pb.Service(kind="Service", metadata=metadata, spec=pb.ServiceSpec(protocol=pb.ServiceSpec.HTTP))
    return node_pb.EntrySet(
        entries=[pb.WorkloadEntry(kind="WorkloadEntry", metadata=metadata, spec=spec)], services=[service]
    )


class Node:
    """An agent's data plane side, and this very process as its workload."""

    def __init__(self, directory: Path, authority: MemoryAuthority, bundle: Any) -> None:
        (directory / "inner").mkdir(mode=0o700)
        (directory / "w").mkdir()
        self.path = directory / "agent.sock"
        self.front = Front(directory / "inner" / "s")
        cache = Cache(directory / "cache")
        self.registry = Registry(DOMAIN, directory / "w", Evidence(), Refusals(utc_now))
        self.scopes = ScopeStore(cache)
        self._authority, self.trust = authority, Trust(cache, DOMAIN)
        self.credentials = Credentials(self.registry, cache, bundle, self._sign, utc_now, random.Random(1), self.trust)
        self.acks: list[node_pb.ConfigAck] = []
        self.interests: list[list[node_pb.DataPlaneRef]] = []
        self.planes = Planes(cache, "127.0.0.1", random.Random(1))
        self.in_force = InForce(utc_now)
        self.secrets, self.leaving = Secrets(), Leaving()
        attestor = Attestor(self.front, self.registry)
        self.data_planes = planes = DataPlanes(
            attestor,
            self.registry,
            self.scopes,
            self.credentials,
            lambda _: 0,
            self.acks.append,
            Interest(self.planes.refs, self.registry, self.interests.append),
            self.in_force,
            self.secrets,
            self.leaving,
        )
        self.leave = LeaveStream(attestor, self.leaving, lambda data_plane: data_plane not in planes.waiting())
        planes.watch(self.leave.look)
        self.revision = 0

    async def _sign(self, requests: list[node_pb.WorkloadCsr]) -> list[node_pb.SignedWorkload]:
        answers = []
        for item in requests:
            template = LeafTemplate(SpiffeId.workload(DOMAIN, item.tenant, item.entry), timedelta(hours=1))
            chain = await self._authority.sign(template, parse_csr(item.csr), utc_now())
            from cryptography.hazmat.primitives.serialization import Encoding

            answers.append(node_pb.SignedWorkload(chain=[c.public_bytes(Encoding.DER) for c in chain]))
        return answers

    def register(self) -> Workload:
        pid = os.getpid()
        pidfd = os.pidfd_open(pid)
        try:
            who = Connection(
                1, "", "", pid=pid, uid=os.geteuid(), gid=os.getegid(), start_time=start_time(pid), pidfd=pidfd
            )
            return self.registry.register(who, "web")
        finally:
            os.close(pidfd)

    def push(self, *resources: Resource, plane: str = "acme/web#1/grpc") -> int:
        self.revision += 1
        update = node_pb.ConfigUpdate(revision=self.revision)
        update.data_planes.add(id=plane, scopes=["client/acme/grpc"])
        scope = update.scopes.add(scope="client/acme/grpc", full=True)
        for item in resources:
            scope.resources.add(type_url=item.type_url, name=item.name, version=item.version, body=item.body)
        self.scopes.apply(update)
        return self.revision

    def acked(self) -> int:
        return self.acks[-1].revision if self.acks else 0


class Stream:
    """A data plane's side of ADS."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def ask(self, type_url: str, *names: str, nonce: str = "", error: str = "", agent: str = "") -> None:
        fields: dict[str, Any] = {"type_url": type_url, "resource_names": names, "response_nonce": nonce}
        if error:
            fields["error_detail"] = {"code": 3, "message": error}
        if agent:
            fields["node"] = {"user_agent_name": agent}
        await self._call.write(api.build(REQUEST, fields).SerializeToString())

    async def answer(self) -> Any:
        return api.parse(RESPONSE, await asyncio.wait_for(self._call.read(), 60))

    def end(self) -> None:
        self._call.cancel()


def stream(channel: grpc.aio.Channel) -> Stream:
    return Stream(channel.stream_stream(ADS)())


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event of its own
            await asyncio.sleep(0.01)
