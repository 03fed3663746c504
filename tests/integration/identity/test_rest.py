"""The REST API of a whole control plane: what gRPC answers, to whom gRPC answers it, and nothing else to anybody."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from rest_client import DEADLINE_S, Rest

from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.api.rest import deprecation, encode, openapi, route
from meshwarden.controlplane.resources.example import EXAMPLES
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import operator_service_pb2 as operator
from meshwarden.v1 import resource_service_pb2 as v1

HIDDEN = "zq7hidden"
MESH = f"""\
{{kind: Tenant, metadata: {{name: acme}}}}
---
{{kind: Tenant, metadata: {{name: globex, labels: {{owner: {HIDDEN}}}}}}}
---
{{kind: Service, metadata: {{tenant: acme, name: web}}, spec: {{protocol: GRPC}}}}
---
{{kind: Service, metadata: {{tenant: globex, name: {HIDDEN}}}, spec: {{protocol: GRPC}}}}
"""
SERVICE = {"kind": "Service", "metadata": {"tenant": "acme", "name": "api"}, "spec": {"protocol": "GRPC"}}
API = "/v1/resources/Service/acme/api"


class World:
    """A control plane with REST, and those who call it."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.url = json.loads((mesh.directory / mesh.name / "server.json").read_text())["rest_url"]
        self.open: list[Rest] = []
        self.root, self.nobody = self.of(mesh.operator), self.of(None)

    def of(self, svid: X509Svid | None) -> Rest:
        made = Rest(self.url, self.mesh.directory / self.mesh.name / "ca.pem", svid)
        self.open.append(made)
        return made

    async def operator(self, tenant: str, name: str, role: Any) -> Rest:
        key = new_key()
        asked = operator.CreateOperatorRequest(tenant=tenant, name=name, role=role, csr=make_csr(key))
        answer = await self.mesh.operators.CreateOperator(asked, timeout=60)
        return self.of(X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key))

    async def refused(self, **fields: str) -> None:
        """Waits until the audit log has a refusal that begins so."""
        log = self.mesh.directory / self.mesh.name / "audit.jsonl"
        async with asyncio.timeout(DEADLINE_S):
            while True:
                events = map(json.loads, log.read_text().splitlines())
                found = [one["fields"] for one in events if one["event"] == "rpc.refused"]
                if any(all(str(one[name]).startswith(text) for name, text in fields.items()) for one in found):
                    return
                await asyncio.sleep(0.02)


@pytest.fixture
async def world(start: Any) -> AsyncIterator[World]:
    made = World(await start(rest={"listen": "127.0.0.1:0"}))
    resources = [item.resource for item in parse(MESH, "mesh.yaml")]
    await made.mesh.resources.Apply(v1.ApplyRequest(resources=resources), timeout=60)
    yield made
    for one in made.open:
        await one.client.aclose()


async def test_a_resource_lives_by_its_etag(world: World) -> None:
    root = world.root
    missing = await root.ask("GET", API)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert missing.json()["code"] == "NOT_FOUND"
    made = await root.ask("PUT", API, json=SERVICE, headers={"if-none-match": "*"}, params={"reason": "a start"})
    assert made.json()["changes"][0]["action"] == "CREATED", made.text
    again = await root.ask("PUT", API, json=SERVICE, headers={"if-none-match": "*"})
    assert (again.status_code, again.json()["code"]) == (412, "ABORTED")
    found = await root.ask("GET", API)
    tag = found.headers["etag"]
    assert tag == f'"{made.json()["revision"]}"'
    assert (await root.ask("GET", API, headers={"if-none-match": tag})).status_code == 304
    changed = found.json()
    changed["spec"]["exportTo"] = ["globex"]
    seen = await root.ask("PUT", API, json=changed, headers={"if-match": tag}, params={"dryRun": "true"})
    assert seen.json()["changes"][0]["action"] == "UPDATED"
    stored = await root.ask("PUT", API, json=changed, headers={"if-match": tag})
    assert stored.status_code == 200, stored.text
    stale = await root.ask("PUT", API, json=changed, headers={"if-match": tag})
    assert (stale.status_code, "get it anew" in stale.text) == (412, True)
    # What a manifest says of the revision that it has seen counts as well.
    assert (await root.ask("PUT", API, json=changed)).status_code == 409
    kept = await root.ask("DELETE", API, headers={"if-match": tag})
    assert kept.status_code == 412
    gone = await root.ask("DELETE", API, headers={"if-match": f'"{stored.json()["revision"]}"'})
    assert gone.status_code == 200, gone.text
    assert (await root.ask("DELETE", API)).status_code == 404
    history = await root.get(
        "/v1/revisions", params={"resource.kind": "Service", "resource.tenant": "acme", "resource.name": "api"}
    )
    assert [one["changes"][0]["action"] for one in history["revisions"]] == ["DELETED", "UPDATED", "CREATED"]
    assert history["revisions"][2]["reason"] == "a start"


async def test_every_fault_is_told_in_its_place(world: World) -> None:
    wrong = {**SERVICE, "spec": {"protocol": "SMTP", "exportTo": ["A!"]}, "more": 1}
    answer = await world.root.ask("PUT", API, json=wrong, params={"bogus": "1"})
    assert answer.status_code == 400
    told = {fault["field"] for fault in answer.json()["faults"]}
    assert {"body.spec.protocol", "body.more", "query.bogus"} <= told
    wrong = {**SERVICE, "spec": {"protocol": "GRPC", "exportTo": ["A!", "ok", "B!"]}}
    answer = await world.root.ask("PUT", API, json=wrong)
    assert {fault["field"] for fault in answer.json()["faults"]} == {"body.spec.exportTo[0]", "body.spec.exportTo[2]"}
    elsewhere = await world.root.ask("PUT", "/v1/resources/Service/acme/other", json=SERVICE)
    assert elsewhere.json()["faults"][0]["field"] == "body.metadata.name"
    many = [{**SERVICE, "metadata": {"tenant": "nowhere", "name": f"s{number}"}} for number in range(100)]
    answer = await world.root.ask("POST", "/v1/resources:apply", json={"resources": many})
    assert len(answer.json()["faults"]) == 100, "trailers would hold some of them alone"
    assert (await world.root.ask("GET", "/v1/resources/Service/acme/A!")).json()["faults"][0]["field"] == "path.name"
    assert (await world.root.ask("GET", "/v1/resources", params={"pageSize": "9999"})).json()["faults"] == [
        {"field": "query.pageSize", "message": "must be less than or equal to 1000"}
    ]


async def test_pages_are_what_grpc_answers(world: World) -> None:
    listed: list[Any] = []
    token = ""
    while True:
        page = await world.root.get(
            "/v1/resources", params={"pageSize": "1", **({"pageToken": token} if token else {})}
        )
        listed += page["resources"]
        token = page.get("nextPageToken", "")
        if not token:
            break
    answer = await world.mesh.resources.List(v1.ListRequest(), timeout=60)
    assert listed == encode.to_dict(answer)["resources"]
    assert [one["metadata"]["name"] for one in (await world.root.get("/v1/resources/Service/acme"))["resources"]] == [
        "web"
    ]
    wrong = await world.root.ask("GET", "/v1/resources", params={"pageToken": "eyJ4IjoxfQ=="})
    assert (wrong.status_code, wrong.json()["faults"][0]["field"]) == (400, "query.pageToken")


async def test_all_that_is_read_is_read(world: World) -> None:
    """Each way that reads answers an operator of the mesh, and the document says so of each."""
    values = {"kind": "Service", "tenant": "acme", "name": "web", "revision": "1", "traceId": "0" * 32, "node": "n"}
    known = {"AdminService.GetTrace", "DataPlaneService.GetDataPlane", "RevisionService.GetRevision"}
    for one in route.load():
        if one.verb == "GET" and not one.streams:
            path = one.path.format_map({**values, "dataPlane": "x"})
            answer = await world.root.ask("GET", path)
            assert answer.status_code in ((200, 404) if one.name in known else (200,)), f"{path}: {answer.text}"
    document = (await world.root.ask("GET", "/v1/openapi.json")).json()
    assert set(document["paths"]) == {one.path for one in route.load()}
    assert (await world.root.get("/v1/status"))["trustDomain"] == "mesh.test"


async def test_who_shows_nothing_is_told_nothing(world: World) -> None:
    for path in ("/v1/status", "/v1/openapi.json", "/v1/resources:watch"):
        answer = await world.nobody.ask("GET", path)
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED"), path
        assert "www-authenticate" in answer.headers
    # Before anything of its body is read.
    said = await world.nobody.raw(b"POST /v1/resources:apply HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 401 ")
    await world.refused(method="/meshwarden.v1.ResourceService/Apply", caller="127.0.0.1:")


async def test_roles_and_tenants_are_those_of_grpc(world: World) -> None:
    viewer = await world.operator("", "viewer", operator.VIEWER)
    acme = await world.operator("acme", "editor", operator.EDITOR)
    node = world.of(await world.mesh.attest_by_token(await world.mesh.token("n1")))
    assert (await node.ask("GET", "/v1/status")).status_code == 403
    assert (await viewer.ask("PUT", API, json=SERVICE)).status_code == 403
    assert (await viewer.ask("GET", "/v1/nodes")).status_code == 200
    assert (await acme.ask("PUT", API, json=SERVICE)).status_code == 200
    assert (await acme.ask("GET", "/v1/nodes")).status_code == 403
    for path in ("/v1/resources/Service/globex/" + HIDDEN, "/v1/status?tenant=globex", "/v1/revisions?tenant=globex"):
        answer = await acme.ask("GET", path)
        assert (answer.status_code, answer.json()["code"]) == (403, "PERMISSION_DENIED"), path
    for one in route.load():
        if one.verb == "GET" and not one.streams and not one.variables:
            answer = await acme.ask("GET", one.path)
            assert HIDDEN not in answer.text, one.path
    await world.refused(
        method="/meshwarden.v1.AdminService/ListNodes", caller="spiffe://mesh.test/tenant/acme/operator/ed"
    )


async def test_a_watch_goes_on_where_it_was(world: World) -> None:
    async with world.root.events("/v1/resources:watch?kinds=Service") as events:
        assert events.answer.headers["content-type"] == "text/event-stream"
        _, number, data = await events.next()
        assert sorted(event["ref"]["name"] for event in data["events"]) == ["web", HIDDEN]
        assert number == ""
        _, number, data = await events.next()
        assert number == f"{data['cursor']['incarnation']}:{data['cursor']['revision']}"
    put = await world.root.ask("PUT", API, json=SERVICE)
    async with world.root.events("/v1/resources:watch?kinds=Service", **{"Last-Event-ID": number}) as events:
        _, _, data = await events.next()
        assert data["cursor"]["revision"] == put.json()["revision"]
        assert data["events"][0]["resource"]["metadata"]["name"] == "api"
    async with world.root.events("/v1/resources:watch", **{"Last-Event-ID": "other:1"}) as events:
        assert events.answer.status_code == 410
    answer = await world.root.ask("GET", "/v1/resources:watch", headers={"last-event-id": "?"})
    assert answer.json()["faults"][0]["field"] == "header.Last-Event-ID"


async def test_a_stream_ends_with_its_callers_right_to_it(world: World) -> None:
    acme = await world.operator("acme", "editor", operator.EDITOR)
    async with acme.events("/v1/resources:watch") as events:
        await events.next()
        removal = operator.RemoveOperatorRequest(tenant="acme", name="editor")
        await world.mesh.operators.RemoveOperator(removal, timeout=60)
        while True:
            kind, _, data = await events.next()
            if kind == "problem":
                break
        assert (data["code"], "operates this mesh no more" in data["detail"]) == ("PERMISSION_DENIED", True)
    assert (await acme.ask("GET", "/v1/resources")).status_code == 403


async def test_a_stream_is_judged_by_its_own_connection(start: Any) -> None:
    """Each door counts its connections from 1, and a stream of the other door's first one is somebody else's."""
    world = World(await start(rest={"listen": "127.0.0.1:0"}))
    await world.mesh.resources.Apply(
        v1.ApplyRequest(resources=[item.resource for item in parse(MESH, "mesh.yaml")]), timeout=60
    )
    acme = await world.operator("acme", "editor", operator.EDITOR)
    by_grpc = world.mesh.resources.Watch(v1.WatchRequest())
    await by_grpc.read()
    async with acme.events("/v1/resources:watch") as events:
        await events.next()
        removal = operator.RemoveOperatorRequest(tenant="acme", name="editor")
        await world.mesh.operators.RemoveOperator(removal, timeout=60)
        while (await events.next())[0] != "problem":
            pass
    by_grpc.cancel()
    for one in world.open:
        await one.client.aclose()


async def test_one_caller_has_so_many_streams(world: World) -> None:
    acme = await world.operator("acme", "viewer", operator.VIEWER)
    opened = [acme.events("/v1/progress:watch") for _ in range(16)]
    held = [await stream.__aenter__() for stream in opened]  # what nobody holds is closed
    for events in held:
        await events.next()
    refused = await acme.ask("GET", "/v1/progress:watch")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    async with world.root.events("/v1/progress:watch") as events:
        await events.next()
    for stream in opened:
        await stream.__aexit__(None, None, None)
    async with asyncio.timeout(60):
        while True:  # who has gone is found out about a moment later
            async with acme.events("/v1/progress:watch") as events:
                if events.answer.status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def test_another_origins_page_changes_nothing(world: World) -> None:
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        answer = await world.root.ask("POST", "/v1/svids:renew", headers=headers)
        assert (answer.status_code, "another origin" in answer.text) == (403, True), headers
    own = {"origin": world.url, "sec-fetch-site": "same-origin"}
    assert (await world.root.ask("POST", "/v1/svids:renew", headers=own)).status_code == 200
    plain = await world.root.ask("POST", "/v1/resources:apply", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    answer = await world.root.ask("GET", "/v1/status", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


RAW = {
    b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n": 404,
    b"GET /v1/status HTTP/1.1\r\n\r\n": 400,
    b"BREW /v1/status HTTP/1.1\r\nhost: x\r\n\r\n": 405,
    b"PATCH /v1/resources HTTP/1.1\r\nhost: x\r\n\r\n": 405,
    b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n": 400,
    b"GET http://x/v1/status HTTP/1.1\r\nhost: x\r\n\r\n": 400,
    b"GET /v1/../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n": 404,
    b"GET /v1/resources/Service/acme/%ff HTTP/1.1\r\nhost: x\r\n\r\n": 400,
    b"GET /v1/resources/Service/acme/a%0d%0ax:y HTTP/1.1\r\nhost: x\r\n\r\n": 400,
    b"GET /v1/resources?kind=%ff HTTP/1.1\r\nhost: x\r\n\r\n": 400,
    b"GET /v1/resources?" + b"a=1&" * 300 + b" HTTP/1.1\r\nhost: x\r\n\r\n": 400,
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n": 431,
    b"GET /v1/status HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n": 431,
    b"GET /v1/status HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 5000 + b"\r\n": 431,
    b"POST /v1/resources:apply HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n": 413,
    b"POST /v1/resources:apply HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}": 400,
    b"POST /v1/resources:apply HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n": 400,
    b"POST /v1/resources:apply HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, x\r\n\r\n": 501,
    b"POST /v1/resources:apply HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n": 400,
    b"GET /v1/status HTTP/1.1\r\nhost: x\r\nif match: y\r\n\r\n": 400,
    b"\x16\x03\x01\x00\xa5": 400,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 400,
}


async def test_hostile_bytes_are_told_why(world: World) -> None:
    for sent, status in RAW.items():
        answer = await world.root.raw(sent.replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n", 1))
        head = answer.split(b"\r\n", 1)[0]
        assert head.startswith(b"HTTP/1.1 %d " % status), (sent[:80], head)
        assert b"Traceback" not in answer


async def test_what_a_path_takes_is_said_as_it_is(world: World) -> None:
    for verb, path, status in (("HEAD", "/v1/resources:watch", 405), ("OPTIONS", "/v1/resources:watch", 204)):
        answer = await world.root.ask(verb, path)
        assert (answer.status_code, answer.headers["allow"]) == (status, "GET, OPTIONS")
    assert (await world.root.ask("OPTIONS", "/v1/status")).headers["allow"] == "GET, HEAD, OPTIONS"
    # What is there is there, whatever its tag (RFC 9110 §13.1.2).
    found = await world.root.ask("GET", "/v1/resources/Service/acme/web", headers={"if-none-match": "*"})
    assert (found.status_code, found.content) == (304, b"")


async def test_a_connection_serves_one_request_after_another(world: World) -> None:
    one = b"GET /v1/progress HTTP/1.1\r\nhost: x\r\n%s\r\n"
    said = await world.root.raw(
        one % b"" + b"HEAD /v1/status HTTP/1.1\r\nhost: x\r\n\r\n" + one % b"connection: close\r\n"
    )
    assert said.count(b"HTTP/1.1 200 ") == 3
    assert said.count(b'{"revision"') == 2


async def test_examples_of_the_document_are_taken(world: World) -> None:
    """Each body that the document shows is understood; most of them are done."""
    await world.mesh.admin.CreateJoinToken(admin.CreateJoinTokenRequest(node="n1"), timeout=60)
    refused: dict[str, str] = {}
    order = ("Tenant", "Service", "WorkloadEntry")
    for one in sorted(route.load(), key=lambda one: one.name != "ResourceService.Apply"):
        examples = openapi.examples_of(one)
        for name in sorted(examples, key=lambda name: order.index(name) if name in order else len(order)):
            body = examples[name]
            values = {"node": "n1", "revision": "1"}
            if one.name == "ResourceService.Put":
                named = body["metadata"]
                values = {"kind": body["kind"], "tenant": named.get("tenant", named["name"]), "name": named["name"]}
                if before := [item.resource for item in parse(EXAMPLES[name], "example.yaml")][:-1]:
                    await world.mesh.resources.Apply(v1.ApplyRequest(resources=before), timeout=60)
            if one.streams:
                continue
            answer = await world.root.ask(one.verb, one.path.format_map(values), json=body)
            if answer.status_code != 200:
                refused[f"{one.name} {name}"] = answer.json()["code"]
    assert refused == {"AdminService.EvictNode A node": "NOT_FOUND"}, "n1 has not joined"


async def test_what_is_deprecated_says_so_in_every_answer(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = deprecation.headers("GetStatus", "Deprecated since 2026-11-01, until 2027-11-01: use another.")
    routes = tuple(
        replace(one, deprecation=said) if one.name in ("AdminService.GetStatus", "ResourceService.Watch") else one
        for one in route.load()
    )
    monkeypatch.setattr(route, "load", lambda: routes)
    world = World(await start(rest={"listen": "127.0.0.1:0"}))
    for path in ("/v1/status", "/v1/status?bogus=1"):
        answer = await world.root.ask("GET", path)
        assert {name: answer.headers[name] for name, _ in said} == dict(said), path
    assert "deprecation" in (await world.nobody.ask("GET", "/v1/status")).headers
    async with world.root.events("/v1/resources:watch") as events:
        assert events.answer.headers["deprecation"] == "@1793491200"
    assert "deprecation" not in (await world.root.ask("GET", "/v1/nodes")).headers
    assert (await world.root.get("/v1/openapi.json"))["paths"]["/v1/status"]["get"]["deprecated"] is True
    for one in world.open:
        await one.client.aclose()
