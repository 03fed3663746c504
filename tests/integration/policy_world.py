"""A control plane's part in what data planes get: it compiles with policy, and pushes what the agent asks for."""

import os
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format

from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2

TRUST_DOMAIN = "mesh.test"
# An HTTP program; answers /broken with 503 from when it was asked for /break.
HTTP = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Program(BaseHTTPRequestHandler):
    broken = False
    def do_GET(self):
        Program.broken |= self.path == "/break"
        self.send_response(503 if Program.broken else 200)
        said = str(self.headers.get("x-forwarded-client-cert")).encode()
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(os.environ["MESHWARDEN_PORT"])), Program).serve_forever()
"""


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


class Policy:
    """The control plane's policy room: resources in, pushes out."""

    def __init__(self, control_plane: Any) -> None:
        self.control_plane = control_plane
        self.mesh = Mesh(TRUST_DOMAIN)
        self.revision = 0
        self._interest = b""

    def declare(self, *entries: dict[str, Any]) -> None:
        """Entries and their services, given as `{"tenant", "name", "protocol", "port", "envoy"}`."""
        selectors = {"uid": os.geteuid()}
        entry_set = node_pb.EntrySet(revision=1)
        for entry in entries:
            tenant, name = entry["tenant"], entry["name"]
            check = {"interval": "0.1s", **entry.get("check", {})}
            service = made(
                "Service",
                tenant,
                name,
                {"protocol": entry.get("protocol", "GRPC"), "exportTo": ["*"], "healthCheck": check},
            )
            plane = "ENVOY" if entry.get("envoy") else "PROXYLESS"
            spec = {
                "service": name,
                "nodes": ["node-a"],
                "selectors": entry.get("selectors", selectors),
                "dataPlane": plane,
                "port": entry.get("port", 0),
                "insecureSameUser": True,
                **entry.get("more", {}),
            }
            workload = made("WorkloadEntry", tenant, name, spec)
            self.mesh.apply([made("Tenant", "", tenant, {}), service, workload])
            entry_set.entries.append(workload.resource if hasattr(workload, "resource") else workload[1])
            entry_set.services.append(service[1])
        self.control_plane.push(entries=entry_set)

    def allow(self, callee: str, caller: str | None) -> None:
        """Lets `tenant/service` be called by another, or by nobody."""
        tenant, name = callee.split("/")
        key = Key("AccessPolicy", tenant, name)
        if caller is None:
            self.mesh.apply([Change(key, None)])
        else:
            who = dict(zip(("tenant", "service"), caller.split("/"), strict=True))
            self.mesh.apply([made("AccessPolicy", tenant, name, {"service": name, "allow": [{"from": [who]}]})])
        self.push()

    def follow(self) -> bool:
        """Takes the agent's interest and endpoints as they are now; whether a push was needed."""
        interest, endpoints = self.control_plane.last("interest"), self.control_plane.last("endpoints")
        now = (interest.SerializeToString() if interest else b"") + (
            endpoints.SerializeToString() if endpoints else b""
        )
        if now == self._interest:
            return False
        self._interest = now
        for key in [key for key in self.mesh.all() if key.kind == "Endpoint"]:
            self.mesh.apply([Change(key, None)])
        for item in endpoints.endpoints if endpoints else ():
            if item.health == resources_pb2.EndpointSpec.HEALTHY:
                spec = {"service": item.entry, "address": item.address, "port": item.port, "node": "node-a"}
                self.mesh.apply([made("Endpoint", item.tenant, f"node-a-{item.id}", {**spec, "entry": item.entry})])
        self.push()
        return True

    def push(self, spoil: str = "") -> int:
        """Pushes all that the agent is interested in; `spoil` names a listener to break."""
        self.revision += 1
        update = node_pb.ConfigUpdate(revision=self.revision)
        interest = self.control_plane.last("interest")
        compiled: set[str] = set()
        for ref in interest.data_planes if interest else ():
            entry = self.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
            scopes = scopes_of(ref, "node-a", entry, self.mesh.named)
            update.data_planes.add(id=ref.id, scopes=scopes)
            for scope in scopes:
                if scope in compiled:
                    continue
                compiled.add(scope)
                content = compile_scope(self.mesh, scope, ref, entry)
                added = update.scopes.add(scope=scope, full=True)
                for item in content.resources:
                    body = b"\xff" if item.name == spoil else item.body
                    version = f"spoilt-{self.revision}" if item.name == spoil else item.version
                    added.resources.add(type_url=item.type_url, name=item.name, version=version, body=body)
        self.control_plane.push(config=update)
        return self.revision


async def settled(policy: Policy, until: Any) -> None:
    """The agent has acknowledged the newest revision."""

    def acked() -> bool:
        policy.follow()
        ack = policy.control_plane.last("ack")
        return ack is not None and ack.revision == policy.revision

    await until(acked, f"revision {policy.revision} is acknowledged")


def healthy(policy: Policy, entry: str) -> Callable[[], bool]:
    def look() -> bool:
        policy.follow()
        said = policy.control_plane.last("endpoints")
        return any(
            item.entry == entry and item.health == resources_pb2.EndpointSpec.HEALTHY
            for item in (said.endpoints if said else ())
        )

    return look
