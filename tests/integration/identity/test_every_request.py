"""Every request of every service, from every kind of caller: made up from the schema, and sent to what serves it.

No answer is a defect of ours, none takes forever, and none shows one tenant's things to another's.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import grpc
import pytest
from any_message import corrupt, message_of
from cryptography import x509
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from meshwarden.certs.authority.disk import DiskAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import (
    admin_service_pb2,
    audit_service_pb2,
    console_service_pb2,
    cost_service_pb2,
    data_plane_service_pb2,
    node_service_pb2,
    operator_service_pb2,
    preview_service_pb2,
    quota_service_pb2,
    region_service_pb2,
    report_pb2,
    resource_service_pb2,
    revision_service_pb2,
    rollout_service_pb2,
    session_service_pb2,
    workload_service_pb2,
)

pytestmark = pytest.mark.hypothesis

FILES = (
    admin_service_pb2,
    audit_service_pb2,
    console_service_pb2,
    cost_service_pb2,
    data_plane_service_pb2,
    node_service_pb2,
    operator_service_pb2,
    preview_service_pb2,
    quota_service_pb2,
    region_service_pb2,
    report_pb2,
    resource_service_pb2,
    revision_service_pb2,
    rollout_service_pb2,
    session_service_pb2,
)


def methods_of(*files: Any) -> dict[str, MethodDescriptor]:
    """{full name: method} of all services in files of the schema."""
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


OF_AGENT = methods_of(workload_service_pb2)
OF_CONTROL_PLANE = methods_of(*FILES)
METHODS = OF_AGENT | OF_CONTROL_PLANE
DEFECTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
# A unary call that takes so long hangs; a stream that stays open is looked at for a moment and closed.
HANGS_S, LOOK_S = 60.0, 0.05
# What grpc.aio's client says if it is still sending when the answer is there.
TOO_LATE = "Internal error from Core"
# In names of another tenant's things; nobody ever sends it.
HIDDEN = "zq7hidden"
MESH = f"""\
{{kind: Tenant, metadata: {{name: acme}}}}
---
{{kind: Tenant, metadata: {{name: globex, labels: {{owner: {HIDDEN}}}}}}}
---
{{kind: Service, metadata: {{tenant: acme, name: web}}, spec: {{protocol: GRPC}}}}
---
{{kind: Service, metadata: {{tenant: globex, name: {HIDDEN}}}, spec: {{protocol: GRPC}}}}
---
kind: WorkloadEntry
metadata: {{tenant: acme, name: web}}
spec: {{service: web, nodes: [node-a], selectors: {{uid: 1000}}, port: 7001}}
---
kind: WorkloadEntry
metadata: {{tenant: globex, name: {HIDDEN}}}
spec: {{service: {HIDDEN}, nodes: [node-b], selectors: {{uid: 1001}}, port: 7002}}
"""


class Caller:
    """Somebody, and its channel."""

    def __init__(self, channel: grpc.aio.Channel, *, sees_all: bool) -> None:
        self.channel = channel
        self.sees_all = sees_all

    async def send(self, method: str, requests: Sequence[bytes]) -> tuple[grpc.StatusCode, bytes]:
        """The status, and all that was said, details included; OK for a stream that is still open."""
        shape, said = METHODS[method], []
        streams = shape.client_streaming or shape.server_streaming
        code, details = grpc.StatusCode.OK, ""
        try:
            if not streams:
                said.append(await self.channel.unary_unary(method)(requests[0], timeout=HANGS_S))
            elif shape.client_streaming:
                await self._read(self.channel.stream_stream(method)(_each(requests), timeout=LOOK_S), said)
            else:
                await self._read(self.channel.unary_stream(method)(requests[0], timeout=LOOK_S), said)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        except asyncio.CancelledError:
            # Ours to pass on, unless it is grpc.aio's client, which gives a stream up that it can't write to any more.
            task = asyncio.current_task()
            if not streams or task is None or task.cancelling():
                raise
        if streams and (code is grpc.StatusCode.DEADLINE_EXCEEDED or details == TOO_LATE):
            code = grpc.StatusCode.OK
        return code, b"\n".join([*said, details.encode()])

    async def _read(self, call: Any, said: list[bytes]) -> None:
        async for answer in call:
            said.append(answer)


async def _each(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


async def region_svid(directory: Path) -> X509Svid:
    """What the control plane of another region shows: it has the same root."""
    opened = await DiskAuthority.open(
        directory, passphrase=SecretStr("correct horse battery"), trust_domain="mesh.test", clock=utc_now
    )
    key = new_key()
    template = LeafTemplate(SpiffeId.control_plane("mesh.test", "us"), timedelta(hours=1))
    return X509Svid.of(await opened.sign(template, key.public_key(), utc_now()), key)


async def callers_of(mesh: Any) -> dict[str, Caller]:
    node = await mesh.attest_by_token(await mesh.token("node-a"))
    made = {"nobody": Caller(mesh.anonymous(), sees_all=False), "node": Caller(mesh.channel(node), sees_all=False)}
    key = new_key()
    items = [{"tenant": "acme", "entry": "web", "csr": make_csr(key)}]
    request = node_service_pb2.SignWorkloadRequest(requests=items)
    sign = made["node"].channel.unary_unary("/meshwarden.v1.NodeService/SignWorkload")
    signed = node_service_pb2.SignWorkloadResponse.FromString(await sign(request.SerializeToString(), timeout=HANGS_S))
    made["workload"] = Caller(mesh.channel(svid_of(signed.results[0].chain, key)), sees_all=False)
    operators = (
        ("viewer", "", operator_service_pb2.VIEWER),
        ("editor of acme", "acme", operator_service_pb2.EDITOR),
        ("admin of acme", "acme", operator_service_pb2.ADMIN),
    )
    for name, tenant, role in operators:
        key, word = new_key(), name.replace(" ", "-")
        asked = operator_service_pb2.CreateOperatorRequest(tenant=tenant, name=word, role=role, csr=make_csr(key))
        answer = await mesh.operators.CreateOperator(asked, timeout=HANGS_S)
        made[name] = Caller(mesh.channel(svid_of(answer.chain, key)), sees_all=not tenant)
    other = await region_svid(mesh.directory / "cp" / "ca")
    made["another region"] = Caller(mesh.channel(other), sees_all=True)
    made["admin"] = Caller(mesh.channel(mesh.operator), sees_all=True)
    return made


def svid_of(chain: Sequence[bytes], key: Any) -> X509Svid:
    return X509Svid.of([x509.load_der_x509_certificate(der) for der in chain], key)


@st.composite
def requests_of(draw: st.DrawFn, method: str) -> list[bytes]:
    shape = METHODS[method]
    one = message_of(shape.input_type).map(lambda made: made.SerializeToString()).flatmap(corrupt)
    return draw(st.lists(one, min_size=1, max_size=4)) if shape.client_streaming else [draw(one)]


async def explore(methods: Iterable[str], send: Callable[[str, list[bytes]], Awaitable[None]]) -> None:
    """Has requests of each method sent."""

    def of(method: str) -> None:
        @settings(
            max_examples=max(1, settings.default.max_examples // 20),
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate],  # to make one smaller would take minutes
        )
        @given(requests_of(method))
        def any_request(requests: list[bytes]) -> None:
            anyio.from_thread.run(send, method, requests)

        any_request()

    for method in methods:
        await anyio.to_thread.run_sync(of, method)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
async def test_no_request_finds_a_defect_or_another_tenant(start: Callable[..., Any], short_dir: Path) -> None:
    (short_dir / "pass").touch(0o600)
    (short_dir / "pass").write_text("correct horse battery")
    disk = {"kind": "disk", "passphrase": f"file:{short_dir}/pass", "create": True}
    mesh = await start(authority=disk, attestor=({"kind": "x509pop", "ca_file": short_dir / "machines.pem"},))
    resources = [item.resource for item in parse(MESH, "mesh.yaml")]
    await mesh.resources.Apply(resource_service_pb2.ApplyRequest(resources=resources), timeout=HANGS_S)
    callers = await callers_of(mesh)
    served: set[str] = set()

    async def send(method: str, requests: list[bytes]) -> None:
        for name, caller in callers.items():
            code, said = await caller.send(method, requests)
            what = f"{method} by {name}: {code.name}: {said[:300]!r}"
            assert code not in DEFECTS, what
            assert caller.sees_all or HIDDEN.encode() not in said, what
            if b"may not call" not in said and code is not grpc.StatusCode.UNAUTHENTICATED:
                served.add(method)

    try:
        await explore(OF_CONTROL_PLANE, send)
    finally:
        for caller in callers.values():
            await caller.channel.close()
    assert served == set(OF_CONTROL_PLANE), "each has come past the door"


async def test_no_request_finds_a_defect_in_an_agent(agent: Any) -> None:
    """The agent's own service is asked by a program that fits an entry and hasn't registered."""
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.socket}") as channel:
        caller = Caller(channel, sees_all=False)

        async def send(method: str, requests: list[bytes]) -> None:
            code, said = await caller.send(method, requests)
            assert code not in DEFECTS, f"{method}: {code.name}: {said[:300]!r}"

        await explore(OF_AGENT, send)
    assert (await agent.status())["node"] == "node-a"
    assert "Traceback" not in agent.log.read_text()
