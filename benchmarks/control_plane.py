"""A control plane process of our own, as `meshwarden server` runs it, for the length of a benchmark."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc.aio
from cryptography import x509

from benchmarks.process import Child, python
from meshwarden.agents.channel import ControlPlane as Place
from meshwarden.agents.channel import open_channel
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.local.plan import toml
from meshwarden.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    resource_service_pb2,
    resource_service_pb2_grpc,
    resources_pb2,
)

TRUST_DOMAIN = "bench.test"
REGION = "local"
BATCH = 100
JOINS_AT_ONCE = 16
RPC_S = 60.0
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane.

    Attributes:
        child: its process.
        place: where it is.
        bundle: the trust domain's roots.
        channel: to it, as the operator.
        operator: what the operator shows.
        rest_port: where its REST API is; 0 if it has none.
    """

    child: Child
    place: Place
    bundle: Bundle
    channel: grpc.aio.Channel
    operator: X509Svid
    rest_port: int

    async def apply(self, *resources: resources_pb2.Resource) -> int:
        """Stores resources, batch by batch; returns the last revision."""
        stub = resource_service_pb2_grpc.ResourceServiceStub(self.channel)
        revision = 0
        for start in range(0, len(resources), BATCH):
            request = resource_service_pb2.ApplyRequest(resources=resources[start : start + BATCH])
            revision = (await stub.Apply(request, timeout=RPC_S)).revision
        return revision

    async def status(self) -> admin_service_pb2.GetStatusResponse:
        """What `meshwarden status` is told."""
        stub = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        return await stub.GetStatus(admin_service_pb2.GetStatusRequest(), timeout=RPC_S)

    async def join_token(self, node: str) -> str:
        """What `meshwarden token create` prints."""
        stub = admin_service_pb2_grpc.AdminServiceStub(self.channel)
        return (await stub.CreateJoinToken(admin_service_pb2.CreateJoinTokenRequest(node=node), timeout=RPC_S)).token

    async def join(self, nodes: Sequence[str]) -> list[X509Svid]:
        """Joins nodes, each with a token of its own; returns their SVIDs in the same order."""
        turn = asyncio.Semaphore(JOINS_AT_ONCE)
        async with open_channel(self.place, self.bundle, None) as channel:
            stub = node_service_pb2_grpc.NodeServiceStub(channel)

            async def one(node: str) -> X509Svid:
                async with turn:
                    key = new_key()
                    token = await _unhurried(lambda: self.join_token(node))
                    request = node_service_pb2.AttestRequest(join_token=token, csr=make_csr(key))
                    answer = await _unhurried(lambda: stub.Attest(request, timeout=RPC_S))
                return X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)

            return list(await asyncio.gather(*map(one, nodes)))


async def _unhurried(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """What a call answers, asked again as agents do where the server has as much to do as it can."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(1.0)


@asynccontextmanager
async def control_plane(directory: Path, rest: bool = False) -> AsyncIterator[ControlPlane]:
    """Runs a control plane with the embedded store and authority below `directory`, that of an earlier run if it is.

    `rest` has it serve the REST API, too.
    """
    passphrase = directory / "passphrase"
    if not directory.exists():
        directory.mkdir(mode=0o700)
        passphrase.write_text(secrets.token_urlsafe(24))
        passphrase.chmod(0o600)
    state, operator = directory / "state", directory / "operator"
    settings: dict[str, str | bool] = {
        "trust_domain": TRUST_DOMAIN,
        "region": REGION,
        "state_dir": str(state),
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "operator_directory": str(operator),
    }
    if rest:
        settings["rest.listen"] = "127.0.0.1:0"
    authority: dict[str, str | bool] = {"kind": "disk", "passphrase": f"file:{passphrase}", "create": True}
    config = directory / "server.toml"
    # A whole fleet joins from one address here, and a node asks for as much as it can.
    limits = dict.fromkeys(("attests_per_address_per_s", "signs_per_node_per_s", "signs_per_tenant_per_s"), 10_000.0)
    more = "".join(f"{name} = {value}\n" for name, value in limits.items())
    config.write_text(toml(settings) + "\n[authority]\n" + toml(authority) + "\n[limits]\n" + more)
    (state / "server.json").unlink(missing_ok=True)  # of an earlier run
    arguments = ["-m", "meshwarden.controlplane", "server", "--config", str(config)]
    async with python("control plane", arguments, directory) as child:
        said = json.loads(await child.until_written(state / "server.json"))
        place, rest_port = Place(said["address"], TRUST_DOMAIN), int(said.get("rest_url", ":0").rpartition(":")[2])
        bundle = Bundle.parse_pem(TRUST_DOMAIN, (state / "ca.pem").read_bytes())
        svid = X509Svid.load((operator / "tls.crt").read_bytes(), (operator / "tls.key").read_bytes())
        async with open_channel(place, bundle, svid) as channel:
            yield ControlPlane(child, place, bundle, channel, svid, rest_port)
