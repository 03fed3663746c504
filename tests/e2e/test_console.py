"""The console as people have it: Debian's Chromium on a mesh of `meshwarden up`, one mesh for all of it."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Person, chromium

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
MORE = f"""\
kind: SLO
metadata: {{tenant: platform, name: billing-quick}}
spec: {{service: billing, objective: 99.9, latency: {{threshold: 0.005s}}}}
---
kind: Service
metadata: {{tenant: acme, name: evil, labels: {{team: "{EVIL}"}}}}
spec: {{protocol: GRPC}}
---
kind: AccessPolicy
metadata: {{tenant: acme, name: evil, labels: {{team: "{EVIL}"}}}}
spec: {{service: evil, allow: [{{from: [{{tenant: acme, service: web}}]}}]}}
"""
DENIED = """\
kind: AccessPolicy
metadata: {tenant: platform, name: no-globex}
spec: {service: orders, deny: [{from: [{tenant: globex, service: web}]}]}
"""


class Console:
    """A mesh and those who look at it."""

    def __init__(self, up: Any, directory: Path, browser: Any) -> None:
        self.up, self.directory, self.browser = up, directory, browser
        self.own = json.loads(up.run("context", "list", "-o", "json").stdout)["current"]

    def address(self, *options: str) -> str:
        """What `meshwarden console` prints."""
        said = self.up.run(*options, "console")
        assert said.returncode == 0, said.stderr
        return str(said.stdout.strip())

    def apply(self, text: str, *arguments: str) -> None:
        """What `meshwarden apply -f` does."""
        file = self.directory / "more.yaml"
        file.write_text(text)
        done = self.up.run("apply", "-f", str(file), *arguments)
        assert done.returncode == 0, done.stderr

    def person(self, *options: str, **looks: Any) -> Person:
        """Somebody who has opened the address that `meshwarden console` prints."""
        return Person(self.browser, self.address(*options), **looks)


@pytest.fixture(scope="module")
def console(start_shared: Callable[..., Any], shared_directory: Path) -> Iterator[Console]:
    up = start_shared("c")
    up.wait_until_up()
    with chromium() as browser:
        made = Console(up, shared_directory, browser)
        made.apply(MORE, "--reason", EVIL)
        out = str(shared_directory / "ann")
        created = up.run("operator", "create", "ann", "--tenant", "acme", "--role", "viewer", "--out", out)
        assert created.returncode == 0, created.stderr
        assert up.run(*created.stderr.partition("use it with: meshwarden ")[2].split()).returncode == 0
        assert up.run("context", "use", made.own).returncode == 0
        yield made


@pytest.fixture(scope="module")
def root(console: Console) -> Iterator[Person]:
    """The operator of the mesh."""
    person = console.person()
    yield person
    person.close()


def menu(person: Person) -> list[str]:
    """The pages of the menu, "graph"."""
    links = person.page.locator("nav a")
    return [str(links.nth(number).get_attribute("data-path")) for number in range(links.count())]


def test_an_operator_sees_every_page_and_each_can_be_used(root: Person) -> None:
    root.until(".graph-page .push", "edges")
    root.until(".attention", "acme/intruder → platform/orders")
    faults: list[str] = []
    for path in [*menu(root), "service/platform/orders"]:
        root.open(path)
        faults += [f"{path}: {fault}" for fault in root.faults()]
    assert faults == []
    root.until("h1", "orders")
    for panel, text in (("Called by", "acme/web"), ("Policies that apply", "AccessPolicy"), ("Recent traces", "ok")):
        root.until(f"section[aria-label='{panel}']", text)
    root.until(".waterfall", "platform/orders")
    root.picture("console-service")
    assert root.complaints() == []


def test_the_graph_is_a_table_too_and_a_keyboard_is_enough(root: Person) -> None:
    root.open("graph")
    root.until(".graph-page .push", "edges")
    page = root.page
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    root.until(".side", "Open its page")
    page.keyboard.press("/")
    page.keyboard.type("denied>0")
    page.locator("h1").click()
    page.keyboard.press("v")
    table = page.locator(".graph table tbody tr")
    table.first.wait_for()
    assert {row.split("\t")[2] for row in table.all_inner_texts()} >= {"platform/orders"}
    assert all("acme/intruder" in row for row in table.all_inner_texts())
    page.keyboard.press("?")
    root.until("dialog", "Light or dark")
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.locator("input[aria-label=Find]").fill("")
    page.locator(".attention button", has_text="acme/intruder → platform/orders").first.click()
    page.get_by_role("button", name="Why? (explain)").click()
    root.until(".explained", "denied")
    root.picture("console-explained")
    assert root.complaints() == []


def test_it_is_readable_in_the_dark_and_on_a_narrow_screen(console: Console) -> None:
    dark = console.person(dark=True, width=420, height=860)
    faults: list[str] = []
    for path in [*menu(dark), "service/platform/billing"]:
        dark.open(path)
        faults += [f"{path}: {fault}" for fault in dark.faults("color-contrast")]  # what the dark can change
        is_wide = dark.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not is_wide, f"{path} is wider than the screen"
    assert faults == []
    dark.open("graph")
    dark.until(".graph-page .push", "edges")
    dark.picture("console-dark")
    assert dark.complaints() == []
    dark.close()


def test_an_operator_of_a_tenant_sees_that_tenant_alone(console: Console) -> None:
    ann = console.person("--context", "ann")
    ann.until(".who", "tenant acme")
    ann.until(".graph-page .push", "edges")
    for path in menu(ann):
        ann.open(path)
        assert "globex" not in ann.text(), path
    for path in ("/v1/mesh:watch?tenant=globex", "/v1/graph?tenant=globex", "/v1/resources/Service/globex"):
        assert ann.get(path)[0] == 403
    ann.open("service/globex/web")
    ann.until("main", "nothing of it is here")
    assert [line for line in ann.complaints() if "403" not in line] == []
    ann.close()


def test_names_and_labels_are_never_read_as_html(root: Person) -> None:
    root.open("service/acme/evil")
    root.until(".policies", "acme/evil")
    root.page.locator(".policies summary").first.click()
    for path in menu(root):
        root.open(path)
    # What is in an address is text, too.
    root.open("service/acme/" + EVIL)
    root.until("main", "<img src=x")
    root.open(EVIL)
    root.until("main", "no such page")
    assert root.page.locator("main img").count() == 0
    assert root.complaints() == []


def agent_of(console: Console, node: str) -> int:
    """The process of a node's agent."""
    state = str(console.up.state_dir.resolve() / node)
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in console.up.left()}
    (found,) = [pid for pid, line in lines.items() if "meshwarden.agents\0run\0" in line and state in line]
    return found


def test_a_fault_is_seen_where_one_looks(console: Console, root: Person) -> None:
    root.open("graph")
    attention = root.page.locator(".attention")
    # A budget that burns: hardly any call to billing is that quick.
    attention.get_by_text("platform/billing-quick").wait_for()
    # An edge that is denied from now on.
    console.apply(DENIED)
    attention.get_by_text("globex/web → platform/orders").wait_for()
    # A node that takes nothing any more.
    pid = agent_of(console, "node-b")
    os.kill(pid, signal.SIGSTOP)
    try:
        console.apply(DENIED.replace("globex, service: web", "acme, service: intruder"))
        attention.get_by_text("node-b").wait_for()
        root.picture("console-graph")
    finally:
        os.kill(pid, signal.SIGCONT)
    attention.get_by_text("node-b").wait_for(state="detached")
    assert root.complaints() == []


def test_one_who_signs_out_is_nobody(console: Console) -> None:
    person = console.person()
    person.page.get_by_role("button", name="Sign out").click()
    person.until("main", "meshwarden console")
    assert person.get("/v1/status")[0] == 401
    assert person.faults() == []
    person.picture("console-login")
    # A code is for once.
    address = console.address()
    other = Person(console.browser, address)
    other.close()
    person.page.goto("about:blank")
    person.page.goto(address)
    person.page.locator(".problem").wait_for()
    person.close()


def test_a_large_graph_is_laid_out_the_same_each_time_and_nothing_lies_on_anything(root: Person) -> None:
    found = root.page.evaluate("""async () => {
      const { layout, NODE } = await import("/console/parts/layout.js");
      const services = [];
      const edges = [];
      for (let number = 0; number < 1000; number += 1) {
        services.push({ name: `t${number % 20}/s${number}`, boxes: [`t${number % 20}`, number % 3 ? "eu" : "us"] });
        const other = (number * 7 + 3) % 1000; // in circles, too
        edges.push([`t${number % 20}/s${number}`, `t${other % 20}/s${other}`], [`t${number % 20}/s${number}`, "t0/s0"]);
      }
      const once = layout({ services, edges });
      const again = layout({ services: [...services].reverse(), edges: [...edges].reverse() });
      const { width, height } = NODE;
      const overlaps = (one, other) => Math.abs(one[1] - other[1]) < width && Math.abs(one[2] - other[2]) < height;
      const places = once.places;
      let over = 0;
      for (const [at, one] of places.entries()) for (const other of places.slice(at + 1)) over += overlaps(one, other);
      const outer = once.boxes.filter((box) => box.depth === 0);
      const within = places.every(([name, x, y]) => outer.some((box) => name.startsWith(`${box.title}/`) &&
        x >= box.x && y >= box.y && x + NODE.width <= box.x + box.width && y + NODE.height <= box.y + box.height));
      const sorted = (made) => JSON.stringify([...made.places].sort());
      return { placed: places.length, boxes: once.boxes.length, over, within, same: sorted(once) === sorted(again) };
    }""")
    assert found == {"placed": 1000, "boxes": 60, "over": 0, "within": True, "same": True}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("web", ["acme/web"]),
        ("tenant=acme", ["acme/web", "acme/idle"]),
        ("errors>0", ["globex/orders"]),
        ("!idle p95<100", ["acme/web"]),
        ("idle or errors>0.5", ["acme/idle", "globex/orders"]),
        ("region=us", ["globex/orders"]),
        ("p95>x", []),
        ("<img src=x>", []),
    ],
)
def test_what_one_writes_to_find_is_understood(root: Person, text: str, meant: list[str]) -> None:
    found = root.page.evaluate(
        """async (text) => {
          const { parse } = await import("/console/parts/query.js");
          return [
            { service: "acme/web", callsPerS: 5, p95S: 0.05, regions: ["eu"] },
            { service: "acme/idle" },
            { service: "globex/orders", callsPerS: 9, errorsPerS: 1, p95S: 0.5, regions: ["eu", "us"] },
          ].filter(parse(text)).map((one) => one.service);
        }""",
        text,
    )
    assert found == meant
