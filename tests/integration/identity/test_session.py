"""Sessions of browsers on a whole control plane: what the certificate may, to nobody else, and not a moment longer."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from google.protobuf.json_format import ParseDict
from rest_client import DEADLINE_S, Rest

from meshwarden.certs import clock
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.api.rest import route
from meshwarden.controlplane.app import control_plane as app_control_plane
from meshwarden.controlplane.app import identity as app_identity
from meshwarden.controlplane.identity import browser_session
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import operator_service_pb2 as operator
from meshwarden.v1 import resource_service_pb2 as resource
from meshwarden.v1 import session_service_pb2 as v1
from meshwarden.v1.session_service_pb2_grpc import SessionServiceStub

NAME = "__Host-meshwarden"
MESH = """\
{kind: Tenant, metadata: {name: acme}}
---
{kind: Tenant, metadata: {name: globex}}
---
{kind: Service, metadata: {tenant: globex, name: hidden}, spec: {protocol: GRPC}}
"""
SERVICE = {"kind": "Service", "metadata": {"tenant": "acme", "name": "api"}, "spec": {"protocol": "GRPC"}}
API = "/v1/resources/Service/acme/api"


class Browser:
    """A page of the control plane's own origin in a browser, which has a cookie or none."""

    def __init__(self, rest: Rest, url: str) -> None:
        self.rest, self.url, self.cookie = rest, url, ""

    async def ask(self, verb: str, path: str, **more: Any) -> httpx.Response:
        headers = {"origin": self.url, "sec-fetch-site": "same-origin", **self.shown, **more.pop("headers", {})}
        answer = await self.rest.ask(verb, path, headers={k: v for k, v in headers.items() if v}, **more)
        self.rest.client.cookies.clear()
        return answer

    @property
    def shown(self) -> dict[str, str]:
        return {"cookie": f"{NAME}={self.cookie}"} if self.cookie else {}

    async def log_in(self, code: str) -> httpx.Response:
        answer = await self.ask("POST", "/v1/session", json={"code": code})
        if answer.status_code == 200:
            pair, *words = answer.headers["set-cookie"].split("; ")
            assert set(words) == {"Path=/", "Secure", "HttpOnly", "SameSite=Strict", "Max-Age=3600"}
            self.cookie = pair.removeprefix(f"{NAME}=")
        return answer


class World:
    """A control plane with REST, operators, and browsers."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.state = mesh.directory / mesh.name
        self.url = json.loads((self.state / "server.json").read_text())["rest_url"]
        self.open: list[Rest] = []

    def rest(self, svid: X509Svid | None) -> Rest:
        self.open.append(Rest(self.url, self.state / "ca.pem", svid))
        return self.open[-1]

    async def svid(self, tenant: str, name: str, role: Any) -> X509Svid:
        key = new_key()
        asked = operator.CreateOperatorRequest(tenant=tenant, name=name, role=role, csr=make_csr(key))
        answer = await self.mesh.operators.CreateOperator(asked, timeout=DEADLINE_S)
        return X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)

    async def code(self, svid: X509Svid) -> v1.SessionCode:
        async with self.mesh.channel(svid) as channel:
            stub: Any = SessionServiceStub(channel)
            answer: v1.SessionCode = await stub.CreateSessionCode(v1.CreateSessionCodeRequest(), timeout=DEADLINE_S)
            return answer

    async def browser(self, svid: X509Svid | None = None) -> Browser:
        """One that is logged in, if somebody logs it in."""
        made = Browser(self.rest(None), self.url)
        if svid is not None:
            answer = await made.log_in((await self.code(svid)).code)
            assert answer.status_code == 200, answer.text
        return made

    def audit(self) -> str:
        return str((self.state / "audit.jsonl").read_text())


@pytest.fixture
async def world(start: Any) -> AsyncIterator[World]:
    made = World(await start(rest={"listen": "127.0.0.1:0"}))
    resources = [item.resource for item in parse(MESH, "mesh.yaml")]
    await made.mesh.resources.Apply(resource.ApplyRequest(resources=resources), timeout=DEADLINE_S)
    yield made
    for one in made.open:
        await one.client.aclose()


async def test_a_session_is_who_asked_for_it_and_may_what_that_one_may(world: World) -> None:
    ann = await world.svid("", "ann", operator.EDITOR)
    browser = await world.browser(ann)
    me = (await browser.ask("GET", "/v1/session")).json()
    expire_time, methods = me.pop("expireTime"), me.pop("methods")
    assert {"AdminService.GetStatus", "ResourceService.Apply"} <= set(methods)
    assert not {"AdminService.BanNode", "SessionService.CreateSessionCode", "NodeService.Sync"} & set(methods)
    assert me == {
        "name": "ann",
        "role": "EDITOR",
        "spiffeId": "spiffe://mesh.test/operator/ann",
        "byCookie": True,
        "trustDomain": "mesh.test",
        "region": "eu",
    }
    assert expire_time <= ann.not_after.isoformat()
    assert (await browser.ask("PUT", API, json=SERVICE)).status_code == 200
    assert (await browser.ask("GET", "/v1/openapi.json")).status_code == 200
    assert (await browser.ask("POST", "/v1/nodes/n1:ban", json={"reason": "x"})).status_code == 403, (
        "that takes an admin"
    )
    by_certificate = (await world.rest(ann).get("/v1/session"))["name"], (await world.rest(ann).ask("GET", API)).json()
    assert by_certificate == ("ann", (await browser.ask("GET", API)).json())
    tenant = await world.browser(await world.svid("acme", "bob", operator.VIEWER))
    said = (await tenant.ask("GET", "/v1/session")).json()
    assert (said["tenant"], said["name"], said["role"]) == ("acme", "bob", "VIEWER")
    assert not {"AdminService.ListRoots", "ResourceService.Apply"} & set(said["methods"])
    assert (await tenant.ask("GET", "/v1/resources/Service/globex/hidden")).status_code == 403
    assert (await tenant.ask("PUT", API, json=SERVICE)).status_code == 403
    for one in route.load():
        if one.verb == "GET" and not one.streams and not one.variables:
            assert "hidden" not in (await tenant.ask("GET", one.path)).text, one.path
    local = await world.browser(world.mesh.operator)
    assert (await local.ask("GET", "/v1/session")).json()["role"] == "ADMIN"
    # Whoever shows a certificate is who that says.
    shown = await world.rest(ann).ask("GET", "/v1/session", headers=local.shown)
    assert (shown.json()["name"], "byCookie" in shown.json()) == ("ann", False)


async def test_a_code_is_good_once_and_for_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = await world.code(world.mesh.operator)
    assert told.address == f"localhost:{world.url.rpartition(':')[2]}"
    assert told.mesh_certificate
    browser = await world.browser()
    assert (await browser.log_in(told.code)).status_code == 200
    again = await (await world.browser()).log_in(told.code)
    assert (again.status_code, again.json()["refusal"], "set-cookie" in again.headers) == (401, "no-code", False)
    monkeypatch.setattr(browser_session, "CODE_LIFE", timedelta(0))
    late = await (await world.browser()).log_in((await world.code(world.mesh.operator)).code)
    assert (late.status_code, late.json()["code"]) == (401, "UNAUTHENTICATED")
    assert (await browser.ask("GET", "/v1/session")).status_code == 200, "what others try ends nothing"


async def test_whose_a_code_is_can_be_asked_and_spends_nothing(world: World) -> None:
    """What a browser that opens a link before anybody follows it does, or somebody who looks before he signs in."""
    bob = await world.svid("acme", "bob", operator.VIEWER)
    code = (await world.code(bob)).code
    browser = await world.browser()
    for _ in range(2):
        answer = await browser.ask("POST", "/v1/session:preview", json={"code": code})
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)
    told = answer.json()
    assert (told["session"]["name"], told["session"]["tenant"], told["session"]["role"]) == ("bob", "acme", "VIEWER")
    assert told["certificateSha256"] == bob.chain[0].fingerprint(SHA256()).hex(":").upper()
    assert told["codeExpireTime"] < told["session"]["expireTime"] <= bob.not_after.isoformat()
    assert "replaced" not in told
    # Somebody who is in already is told which session would end; it does not yet.
    other = await world.browser(world.mesh.operator)
    told = (await other.ask("POST", "/v1/session:preview", json={"code": code})).json()
    assert (told["session"]["name"], told["replaced"]["name"]) == ("bob", "local")
    assert (await other.ask("GET", "/v1/session")).json()["name"] == "local"
    assert (await other.log_in(code)).json()["name"] == "bob"
    assert (await browser.ask("POST", "/v1/session:preview", json={"code": code})).json()["refusal"] == "no-code"
    # A session that is none any more is not told of.
    await other.ask("DELETE", "/v1/session")
    code = (await world.code(bob)).code
    assert "replaced" not in (await other.ask("POST", "/v1/session:preview", json={"code": code})).json()


async def test_whose_a_code_is_is_told_to_our_own_page_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (await world.code(world.mesh.operator)).code
    browser = await world.browser()
    for headers in (
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://127.0.0.1:1", "sec-fetch-site": "same-site"},
        {"origin": "null", "sec-fetch-site": ""},
        {"origin": "", "sec-fetch-site": "none"},
        {"origin": "", "sec-fetch-site": ""},
    ):
        answer = await browser.ask("POST", "/v1/session:preview", json={"code": code}, headers=headers)
        assert (answer.status_code, "local" in answer.text) == (403, False), headers
    body = json.dumps({"code": code}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = await browser.ask("POST", "/v1/session:preview", content=body, headers={"content-type": kind})
        assert (answer.status_code, "local" in answer.text) == (415, False), kind
    assert (await browser.ask("GET", "/v1/session:preview", params={"code": code})).status_code == 405
    for bad in ({"code": ""}, {"code": "a" * 65}, {"code": "a b"}, {"code": 1}, {}, {"code": code, "more": 1}, []):
        assert (await browser.ask("POST", "/v1/session:preview", json=bad)).status_code == 400, bad
    async with world.mesh.channel(world.mesh.operator) as channel:
        stub: Any = SessionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PreviewSession(v1.PreviewSessionRequest(code=code), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    monkeypatch.setattr(browser_session, "CODE_LIFE", timedelta(0))
    late = (await world.code(world.mesh.operator)).code
    answer = await browser.ask("POST", "/v1/session:preview", json={"code": late})
    assert (answer.status_code, answer.json()["refusal"]) == (401, "no-code")
    assert (await browser.log_in(code)).status_code == 200, "none of that has spent it"
    # Asking is guessing, too.
    wrong = [
        await browser.ask("POST", "/v1/session:preview", json={"code": f"guess-{number}"})
        for number in range(browser_session.BEGIN_PACE.burst + 5)
    ]
    assert {one.status_code for one in wrong} == {401, 429}


async def test_who_guesses_is_held_back(world: World) -> None:
    browser = await world.browser()
    answers = [await browser.log_in(f"guess-{number}") for number in range(browser_session.BEGIN_PACE.burst + 5)]
    held = [one for one in answers if one.status_code == 429]
    assert held
    assert {one.status_code for one in answers} == {401, 429}
    assert int(held[0].headers["retry-after"]) >= 1
    for body in ({"code": ""}, {"code": "a" * 65}, {"code": "a b"}, {"code": 1}, {}, {"code": "a", "more": 1}, []):
        answer = await browser.ask("POST", "/v1/session", json=body)
        assert answer.status_code == 400, body


async def test_a_login_gives_a_new_cookie_and_ends_the_one_before(world: World) -> None:
    """Whatever cookie was put there by somebody else is nobody's session afterwards."""
    ann = await world.svid("", "ann", operator.VIEWER)
    browser = await world.browser()
    browser.cookie = planted = "a" * 43
    assert (await browser.log_in((await world.code(ann)).code)).status_code == 200
    assert browser.cookie != planted
    first = browser.cookie
    assert (await browser.log_in((await world.code(ann)).code)).status_code == 200
    thief = await world.browser()
    for text in (planted, first):
        thief.cookie = text
        answer = await thief.ask("GET", "/v1/session")
        assert (answer.status_code, "a session that has ended" in answer.text) == (401, True)
    # As with a cookie that is none.
    two = await world.browser()
    headers = {"cookie": f"{NAME}={browser.cookie}; {NAME}={browser.cookie}"}
    assert (await two.ask("GET", "/v1/session", headers=headers)).status_code == 401
    assert (await browser.ask("GET", "/v1/session")).status_code == 200


async def test_another_page_has_no_part_in_it(world: World) -> None:
    browser = await world.browser(world.mesh.operator)
    port = int(world.url.rpartition(":")[2])
    elsewhere = f"https://127.0.0.1:{port + 1}"
    for headers in (
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example", "sec-fetch-site": ""},
        {"origin": elsewhere, "sec-fetch-site": "same-site"},
        {"origin": elsewhere, "sec-fetch-site": ""},
        {"origin": world.url.replace("https", "http"), "sec-fetch-site": ""},
        {"origin": "null", "sec-fetch-site": ""},
        {"origin": "", "sec-fetch-site": "none"},
        {"origin": "", "sec-fetch-site": ""},
    ):
        for verb, path, body in (
            ("PUT", API, SERVICE),
            ("DELETE", "/v1/session", None),
            ("POST", "/v1/svids:renew", {}),
        ):
            answer = await browser.ask(verb, path, headers=headers, **({"json": body} if body is not None else {}))
            assert answer.status_code == 403, (headers, verb)
        code = (await world.code(await world.svid("", "ann", operator.VIEWER))).code
        answer = await (await world.browser()).ask("POST", "/v1/session", json={"code": code}, headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False), headers
    for headers in ({"sec-fetch-site": "same-site", "origin": ""}, {"sec-fetch-site": "cross-site", "origin": ""}):
        assert (await browser.ask("GET", "/v1/status", headers=headers)).status_code == 403, headers
    assert (await browser.ask("GET", "/v1/status", headers={"sec-fetch-site": "none"})).status_code == 200
    # What a form can send.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = await browser.ask("POST", "/v1/svids:renew", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415, kind
    answer = await browser.ask("GET", "/v1/session")
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]
    # Nor does a session come by a GET.
    assert (await browser.ask("GET", "/v1/session", params={"code": "x"})).status_code == 400


async def test_by_a_session_nobody_gets_what_outlives_it(world: World) -> None:
    browser = await world.browser(world.mesh.operator)
    assert (await browser.ask("POST", "/v1/session:code", json={})).status_code == 403
    csr = {"csr": base64.b64encode(make_csr(new_key())).decode()}
    assert (await browser.ask("POST", "/v1/operators:renew", json=csr)).status_code == 403
    asked = {**csr, "name": "mallory", "role": "ADMIN"}
    answer = await browser.ask("POST", "/v1/operators", json=asked)
    assert (answer.status_code, "takes the certificate itself" in answer.text) == (403, True)
    async with world.mesh.channel(world.mesh.operator) as channel:
        stub: Any = SessionServiceStub(channel)
        code = (await world.code(world.mesh.operator)).code
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateSession(v1.CreateSessionRequest(code=code), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await (await world.browser()).log_in(code)).status_code == 200, "and spends nothing"


async def test_who_logs_out_is_out_with_all_streams(world: World) -> None:
    browser = await world.browser(await world.svid("", "ann", operator.VIEWER))
    async with browser.rest.events("/v1/resources:watch", **browser.shown) as events:
        await events.next()
        other = Browser(world.rest(None), world.url)
        other.cookie = browser.cookie
        answer = await other.ask("DELETE", "/v1/session")
        assert (answer.status_code, answer.headers["set-cookie"].split(";")[0]) == (200, f"{NAME}=")
        assert "Max-Age=0" in answer.headers["set-cookie"]
        kind, data = await _end(events)
        assert (kind, data["code"], "the session was ended" in data["detail"]) == ("problem", "UNAUTHENTICATED", True)
    assert (await other.ask("GET", "/v1/session")).status_code == 401
    assert (await other.ask("DELETE", "/v1/session")).status_code == 200, "twice is once"


async def test_it_ends_with_the_right_of_who_asked_for_it(world: World) -> None:
    """Removed, denied, and asked for by a certificate that has ended."""
    ann, bob = await world.svid("", "ann", operator.EDITOR), await world.svid("acme", "bob", operator.EDITOR)
    of_ann, of_bob = await world.browser(ann), await world.browser(bob)
    async with of_ann.rest.events("/v1/resources:watch", **of_ann.shown) as events:
        await events.next()
        await world.mesh.operators.RemoveOperator(operator.RemoveOperatorRequest(name="ann"), timeout=DEADLINE_S)
        kind, data = await _end(events)
        assert (kind, "operates this mesh no more" in data["detail"]) == ("problem", True)
    assert (await of_ann.ask("GET", "/v1/session")).status_code == 403
    assert (await of_ann.ask("PUT", API, json=SERVICE)).status_code == 403
    # Another may log in with the same browser all the same.
    assert (await of_ann.log_in((await world.code(world.mesh.operator)).code)).status_code == 200
    async with of_bob.rest.events("/v1/resources:watch", **of_bob.shown) as events:
        await events.next()
        asked = {"targets": [{"spiffeId": "spiffe://mesh.test/tenant/acme/operator/bob"}], "reason": "stolen"}
        await world.mesh.admin.Deny(ParseDict(asked, admin.DenyRequest()), timeout=DEADLINE_S)
        kind, data = await _end(events)
        assert (kind, data["code"]) == ("problem", "UNAUTHENTICATED")
    assert (await of_bob.ask("GET", "/v1/session")).status_code == 401
    code = await world.svid("", "eve", operator.VIEWER)
    held = (await world.code(code)).code
    await world.mesh.operators.RemoveOperator(operator.RemoveOperatorRequest(name="eve"), timeout=DEADLINE_S)
    late = await world.browser()
    assert (await late.ask("POST", "/v1/session:preview", json={"code": held})).status_code == 403
    refused = await late.log_in(held)
    assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)


async def test_a_role_that_is_taken_back_is_gone_at_once(world: World) -> None:
    browser = await world.browser(await world.svid("", "ann", operator.EDITOR))
    assert (await browser.ask("PUT", API, json=SERVICE)).status_code == 200
    await world.svid("", "ann", operator.VIEWER)
    assert (await browser.ask("GET", "/v1/session")).json()["role"] == "VIEWER"
    assert (await browser.ask("DELETE", API)).status_code == 403


async def test_it_ends_with_its_hour_and_with_the_certificate(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    of_sessions, of_peers = Clock(), Clock()
    monkeypatch.setattr(app_identity, "utc_now", of_sessions)
    monkeypatch.setattr(app_control_plane, "utc_now", of_peers)
    world = World(await start(rest={"listen": "127.0.0.1:0"}))
    browser = await world.browser(await world.svid("", "ann", operator.VIEWER))
    async with browser.rest.events("/v1/resources:watch", **browser.shown) as events:
        await events.next()
        of_sessions.ahead = timedelta(hours=1)
        kind, data = await _end(events)
        assert (kind, "the session has ended" in data["detail"]) == ("problem", True)
    assert (await browser.ask("GET", "/v1/session")).status_code == 401
    of_sessions.ahead = timedelta(0)
    browser = await world.browser(await world.svid("", "ann", operator.VIEWER))
    of_peers.ahead = timedelta(hours=9)
    answer = await browser.ask("GET", "/v1/session")
    assert (answer.status_code, "certificate was refused" in answer.text) == (401, True)
    for one in world.open:
        await one.client.aclose()


async def test_one_session_has_so_many_streams(world: World) -> None:
    ann = await world.svid("", "ann", operator.VIEWER)
    browser, other = await world.browser(ann), await world.browser(ann)
    opened = [browser.rest.events("/v1/progress:watch", **browser.shown) for _ in range(8)]
    kept = [await stream.__aenter__() for stream in opened]  # what nobody holds is closed
    for events in kept:
        await events.next()
    refused = await browser.ask("GET", "/v1/progress:watch")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    more = [other.rest.events("/v1/progress:watch", **other.shown) for _ in range(8)]
    kept += [await stream.__aenter__() for stream in more]
    for events in kept[8:]:
        await events.next()
    third = await world.browser(ann)
    assert (await third.ask("GET", "/v1/progress:watch")).status_code == 429, "one operator has sixteen"
    async with world.rest(world.mesh.operator).events("/v1/progress:watch") as events:
        await events.next()
    for stream in (*opened, *more):
        await stream.__aexit__(None, None, None)
    async with asyncio.timeout(DEADLINE_S):
        while True:  # who has gone is found out about a moment later
            async with browser.rest.events("/v1/progress:watch", **browser.shown) as events:
                if events.answer.status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def test_strangers_push_no_session_out(world: World) -> None:
    """Those who prove nothing have few connections in all; a session's are its operator's."""
    browser = await world.browser(world.mesh.operator)
    async with browser.rest.events("/v1/resources:watch", **browser.shown) as events:
        await events.next()
        strangers = []
        for _ in range(300):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", browser.rest.port, ssl=browser.rest.context, server_hostname="controlplane.mesh.test"
            )
            strangers.append(writer)
        put = await world.rest(world.mesh.operator).ask("PUT", API, json=SERVICE)
        assert put.status_code == 200, put.text
        while True:
            _, _, data = await events.next()
            if any(event["ref"]["name"] == "api" for event in data.get("events", ())):
                break
        for writer in strangers:
            writer.close()


async def test_what_shows_a_session_is_told_to_nobody(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    told = await world.code(world.mesh.operator)
    browser = await world.browser()
    await browser.ask("POST", "/v1/session:preview", json={"code": told.code})
    answer = await browser.log_in(told.code)
    session = (await browser.ask("GET", "/v1/session")).text
    await browser.ask("GET", "/v1/nothing")
    await browser.ask("GET", f"/v1/session/{told.code[:8]}")
    await browser.log_in(told.code)
    await browser.ask("DELETE", "/v1/session")
    events = [json.loads(line) for line in world.audit().splitlines()]
    kinds = [one["event"] for one in events if one["event"].startswith("session.")]
    assert kinds == ["session.code", "session.begin", "session.end"]
    begun = next(one["fields"] for one in events if one["event"] == "session.begin")
    assert begun["spiffe_id"] == "spiffe://mesh.test/operator/local"
    # What the caller's own library logs is the caller's.
    logged = [one.getMessage() for one in caplog.records if not one.name.startswith(("httpcore", "httpx"))]
    printed = "".join(capfd.readouterr())
    for said in (answer.text, session, world.audit(), *logged, printed):
        assert browser.cookie not in said
        assert told.code not in said
    files = [file for file in world.state.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        assert browser.cookie.encode() not in content, file
        assert told.code.encode() not in content, file


async def test_without_rest_there_is_no_code(start: Any) -> None:
    mesh = await start()
    async with mesh.channel(mesh.operator) as channel:
        stub: Any = SessionServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateSessionCode(v1.CreateSessionCodeRequest(), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "[rest]" in str(caught.value.details())


class Clock:
    """A clock that is set ahead."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> Any:
        return clock.utc_now() + self.ahead


async def _end(events: Any) -> tuple[str, Any]:
    """How a stream ends."""
    while True:
        kind, _, data = await events.next()
        if kind in ("end", "problem"):
            return kind, data
