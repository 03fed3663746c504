"""The explorer in Debian's Chromium, by a session, on a control plane that runs."""

from typing import Any

import pytest
from playwright.async_api import async_playwright
from test_session import World

from meshwarden.v1 import operator_service_pb2 as operator

pytestmark = pytest.mark.needs("chromium")

DEADLINE_MS = 60_000
WATCH = """
globalThis.complaints = [];
addEventListener("securitypolicyviolation", (it) => complaints.push(`${it.violatedDirective} ${it.blockedURI}`));
"""
BEGIN = """async (code) => (await fetch("/v1/session", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ code }),
})).status"""


async def test_one_tries_the_api_out_as_who_one_is(start: Any) -> None:
    world = World(await start(rest={"listen": "127.0.0.1:0"}))
    ann = await world.svid("", "ann", operator.VIEWER)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        # The mesh's roots are no browser's; test_web_serving.py holds what it is shown against them.
        context = await chromium.new_context(ignore_https_errors=True)
        context.set_default_timeout(DEADLINE_MS)
        await context.add_init_script(WATCH)
        page = await context.new_page()
        asked, said = list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        told = await world.code(ann)
        here = f"https://{told.address}"
        await page.goto(f"{here}/explorer/")
        await page.locator("#who", has_text="Nobody is logged in").wait_for()
        assert await page.evaluate(BEGIN, told.code) == 200
        assert await page.evaluate("document.cookie") == "", "no script reads it"
        await page.reload()
        await page.locator("#who", has_text="ann, viewer").wait_for()
        # What reads is answered, and what changes something reaches the API as JSON, which refuses a viewer.
        for tag, path, answer in (("SessionService", "/v1/session", "200"), ("AdminService", "/v1/svids:renew", "403")):
            await page.locator(f"#operations-tag-{tag}").click()
            verb = "get" if answer == "200" else "post"
            operation = page.locator(f".opblock-{verb}").filter(has=page.locator(f'[data-path="{path}"]'))
            await operation.locator(".opblock-summary-control").click()
            await operation.locator("button.execute").click()
            status = operation.locator(".live-responses-table .response .response-col_status")
            await status.filter(has_text=answer).wait_for()
        assert "spiffe://mesh.test/operator/ann" in await page.locator(".live-responses-table").first.inner_text()
        # A stream has no end: what it begins with is shown.
        await page.locator("#operations-tag-ConsoleService").click()
        stream = page.locator(".opblock-get").filter(has=page.locator('[data-path="/v1/mesh:watch"]'))
        await stream.locator(".opblock-summary-control").click()
        await stream.locator("button.execute").click()
        await stream.locator(".live-responses-table .response", has_text="data: {").first.wait_for()
        assert said == []
        assert await page.evaluate("globalThis.complaints") == []
        assert [url for url in asked if not url.startswith((here, "data:", "blob:"))] == []
        await chromium.close()
    for one in world.open:
        await one.client.aclose()


async def test_its_policy_is_the_consoles_but_for_text_that_becomes_elements(start: Any) -> None:
    world = World(await start(rest={"listen": "127.0.0.1:0"}))
    nobody = world.rest(None)
    moved = await nobody.ask("GET", "/explorer")
    assert (moved.status_code, moved.headers["location"]) == (302, "/explorer/")
    for path in ("/explorer/", "/explorer/explorer.js", "/explorer/swagger-ui-bundle.js", "/explorer/swagger-ui.css"):
        answer = await nobody.ask("GET", path)
        policy = answer.headers["content-security-policy"]
        assert (answer.status_code, "unsafe" in policy, "script-src 'self';" in policy) == (200, False, True), path
        assert "frame-ancestors 'none'" in policy
    for path in ("/explorer/../assets.py", "/explorer/swagger-ui.js.map", "/explorer/index.j2", "/explorer/x"):
        said = await nobody.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 404 "), path
    for one in world.open:
        await one.client.aclose()
