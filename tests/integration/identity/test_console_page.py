"""The console in Debian's Chromium on a control plane alone: what needs no mesh that runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Page, Route, async_playwright
from test_session import World

from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import operator_service_pb2 as operator
from meshwarden.v1 import resource_service_pb2 as resource
from meshwarden.v1.resource_service_pb2 import ResourceRef

pytestmark = pytest.mark.needs("chromium")

DEADLINE_MS = 60_000
MESH = """\
{kind: Tenant, metadata: {name: acme}}
---
{kind: Service, metadata: {tenant: acme, name: web}, spec: {protocol: GRPC}}
"""
TABLE = """async () => {
  const { table } = await import("/console/parts/table.js");
  let left = 90;
  const columns = [{ title: "Left", value: () => left, show: () => `${left} %` }];
  const made = table({ label: "x", id: (row) => row.id, columns });
  made.update([{ id: 1 }]);
  left = 20;
  made.update([{ id: 1 }]);
  return made.element.querySelector("td").textContent;
}"""
BARS = """async () => {
  const { traceTable } = await import("/console/pages/traces.js");
  const made = traceTable("x");
  const quick = { traceId: "a", start: "2026-11-27T00:00:00Z", duration: "1s" };
  made.update([quick]);
  made.update([quick, { ...quick, traceId: "b", duration: "60s" }]);
  const row = [...made.element.querySelectorAll("tbody tr")].find((one) => one.innerHTML.includes("#traces/a"));
  return row.querySelector("rect").getAttribute("width");
}"""


@asynccontextmanager
async def signed_in(world: World) -> AsyncIterator[Page]:
    told = await world.code(await world.svid("", "ann", operator.VIEWER))
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = await chromium.new_context(ignore_https_errors=True)
        context.set_default_timeout(DEADLINE_MS)
        page = await context.new_page()
        await page.goto(f"https://{told.address}/console/#code={told.code}")
        await page.get_by_role("button", name="Sign in").wait_for()
        await page.locator(".skip").focus()
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Sign in").click()
        await page.locator("h1", has_text="Graph").wait_for()
        yield page
        await chromium.close()


async def test_a_page_of_the_console_says_what_is_so_now(start: Any) -> None:
    world = World(await start(rest={"listen": "127.0.0.1:0"}))
    resources = [item.resource for item in parse(MESH, "mesh.yaml")]
    await world.mesh.resources.Apply(resource.ApplyRequest(resources=resources), timeout=60)
    async with signed_in(world) as page:
        # The link that skips the menu leads to the page that is shown.
        await page.evaluate("location.hash = 'nodes'")
        await page.locator("h1", has_text="Nodes").wait_for()
        await page.locator(".skip").focus()
        await page.keyboard.press("Enter")
        await page.wait_for_function("document.activeElement.id === 'main' && location.hash === '#nodes'")
        assert await page.locator("h1").inner_text() == "Nodes"
        await page.evaluate("location.hash = 'nowhere'")
        await page.locator("main", has_text="There is no such page").wait_for()
        assert await page.title() == "Console · Meshwarden"
        # The menu of a narrow screen shows where one is.
        await page.set_viewport_size({"width": 390, "height": 844})
        await page.evaluate("location.hash = 'audit'")
        await page.wait_for_function(
            "document.querySelector('nav a[aria-current]').dataset.path === 'audit' && "
            "document.querySelector('nav a[aria-current]').getBoundingClientRect().right <= innerWidth"
        )
        await page.evaluate("location.hash = 'nodes'")
        await page.locator(".share-words", has_text="none").first.wait_for()
        # What a row shows may change although what was told of it does not.
        assert await page.evaluate(TABLE) == "20 %"
        assert float(await page.evaluate(BARS)) == 1
        # One question at a time, however long an answer takes.
        held: list[Route] = []
        await page.clock.install()
        await page.route("**/v1/resources/**", lambda route: held.append(route))
        await page.evaluate("location.hash = 'service/acme/web'")
        while len(held) < 3:
            await page.wait_for_timeout(20)
        await page.clock.run_for(30_000)
        await page.evaluate("fetch('/v1/session').then((answer) => answer.status)")
        assert len(held) == 3
        for route in held:
            await route.continue_()
        await page.unroute("**/v1/resources/**")
        # A service that is deleted while one looks.
        await page.locator(".figures", has_text="Endpoints").wait_for()
        ref = ResourceRef(kind="Service", tenant="acme", name="web")
        await world.mesh.resources.Delete(resource.DeleteRequest(refs=[ref]), timeout=60)
        await page.locator("main", has_text="nothing of it is here").wait_for()
        assert await page.locator(".figures .figure").count() == 0
    for one in world.open:
        await one.client.aclose()
