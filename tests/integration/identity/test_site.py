"""The files of the console: for everybody, under headers that let the page do nothing but ask its own origin."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rest_client import Rest

from meshwarden.controlplane.console import assets

AWAY = (
    "/console/../../assets.py",
    "/console/..%2f..%2fassets.py",
    "/console/%2e%2e/assets.py",
    "/console/....//assets.py",
    "/console/..\\assets.py",
    "/console//etc/passwd",
    "/console/static/index.html",
    "/console/index.html/",
    "/console/index.html%00.js",
    "/console/%",
    "/console/" + "a/" * 4000,
    "/consolex",
)


@pytest.fixture
async def nobody(start: Any) -> AsyncIterator[Rest]:
    """Somebody without a certificate."""
    mesh = await start(rest={"listen": "127.0.0.1:0"})
    state = mesh.directory / mesh.name
    made = Rest(json.loads((state / "server.json").read_text())["rest_url"], state / "ca.pem", None)
    yield made
    await made.client.aclose()


async def test_everybody_gets_the_page_and_what_guards_it(nobody: Rest) -> None:
    for path in ("/", "/console"):
        answer = await nobody.ask("GET", path)
        assert (answer.status_code, answer.headers["location"]) == (302, "/console/")
    page = await nobody.ask("GET", "/console/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.content == (assets.STATIC / "index.html").read_bytes()
    policy = page.headers["content-security-policy"]
    for told in ("default-src 'none'", "script-src 'self';", "style-src 'self';", "frame-ancestors 'none'"):
        assert told in policy
    assert "unsafe" not in policy
    assert "base-uri 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    said = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }
    assert {name: page.headers[name] for name in said} == said
    for name, asset in assets.load().items():
        answer = await nobody.ask("GET", name)
        assert (answer.content, answer.headers["etag"]) == (asset.body, asset.tag), name
    # What has not changed is not sent again.
    again = await nobody.ask("GET", "/console/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == policy
    head = await nobody.ask("HEAD", "/console/")
    assert (head.status_code, head.content, head.headers["content-length"]) == (
        200,
        b"",
        page.headers["content-length"],
    )
    assert (await nobody.ask("POST", "/console/")).status_code == 405


async def test_no_path_leads_out_of_them(nobody: Rest) -> None:
    for path in AWAY:
        said = await nobody.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 404 "), (path, said[:200])
        assert b"application/problem+json" in said


async def test_the_files_have_no_script_in_the_page(nobody: Rest) -> None:
    """The policy forbids it, and a browser would leave it out."""
    for name, asset in assets.load().items():
        if name.endswith(".html"):
            text = asset.body.decode()
            assert " style=" not in text
            assert "<style" not in text
            assert not re.search(r"\son[a-z]+=", text)
            assert text.count("<script") == text.count('<script type="module" src="/console/')


def test_all_modules_of_the_page_are_asked_for_at_once() -> None:
    """And not one after the other, as each says what it imports."""
    found = {path.relative_to(assets.STATIC).as_posix() for path in assets.STATIC.rglob("*.js")}
    text = (assets.STATIC / "index.html").read_text()
    named = set(re.findall(r'<link rel="modulepreload" href="/console/([^"]+)">', text))
    assert named == found - {
        "app.js",
        "parts/drawing_worker.js",
        "parts/paint.js",
    }  # the one that begins; a worker's own
