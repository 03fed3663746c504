"""The console as people have it: Debian's Chromium on a mesh of `meshwarden up`, one mesh for all of it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Person, chromium
from tests.shell import Shell

from meshwarden.controlplane.local import record

pytestmark = [pytest.mark.e2e, pytest.mark.alone, pytest.mark.timeout(900)]
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

    def operator(self, name: str, *options: str) -> None:
        """Lets somebody operate, whose context has that name; the own one stays the current."""
        created = self.up.run("operator", "create", name, *options, "--out", str(self.directory / name))
        assert created.returncode == 0, created.stderr
        assert self.up.run(*created.stderr.partition("use it with: meshwarden ")[2].split()).returncode == 0
        assert self.up.run("context", "use", self.own).returncode == 0

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
        made.operator("ann", "--tenant", "acme", "--role", "viewer")
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
    ann.until(".fault", "It is not asked for again.")
    told = {"status": 403, "content_type": "application/problem+json", "body": '{"status": 403, "detail": "not yours"}'}
    ann.page.route("**/v1/mesh:watch?service=*", lambda route: route.fulfill(**told))
    ann.open("service/globex/orders")
    ann.until(".fault", "It is not followed any more.")
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
    # A code is for once.
    address = console.address()
    other = Person(console.browser, address)
    other.close()
    person.page.goto("about:blank")
    person.page.goto(address)
    person.page.locator(".problem").wait_for()
    person.close()


def test_a_link_asks_whose_it_is_and_its_button_alone_signs_in(console: Console) -> None:
    words = {"0hkc7lDd1MmAF4BgJ1RIrbGJ1JxTKYyn5yvb2J4mrcE": "…", "9F:02:6B:…:C4": "…"}
    said = Shell(console.up.environment, console.directory).types("docs/console.md", "meshwarden console", words)
    address, certificate = said.splitlines()[0], said.partition(", certificate ")[2].split()[0]
    code = address.partition("#code=")[2]
    seen, looked = (Person(console.browser, address, signs_in=False) for _ in range(2))
    for person in (looked, seen):  # as a mail program does that shows what a link leads to
        person.until(".login h2", "Sign in as local (admin, whole mesh) on mesh.test?")
        person.until(".login dd", certificate)
        person.until(".login dd", "spiffe://mesh.test/operator/local")
        assert person.page.url.endswith("/console/"), "the code is in no history"
        assert person.get("/v1/session")[0] == 401
        assert person.context.cookies() == []
    looked.close()
    assert seen.faults() == []
    seen.picture("console-sign-in")
    seen.tab_to("Sign in")
    seen.page.keyboard.press("Enter")
    seen.until(".who", "local")
    seen.page.reload()
    seen.until(".who", "local")
    seen.page.go_back()
    assert code not in seen.page.url
    sent = seen.requests + looked.requests
    assert code not in str([(request.url, request.headers) for request in sent]), "it is in bodies alone"
    assert {request.url.rpartition("/")[2] for request in sent if code in (request.post_data or "")} == {
        "session:preview",
        "session",
    }
    seen.close()


def test_who_is_in_already_is_told_which_session_would_end(console: Console) -> None:
    person = console.person()
    person.open("nodes")
    person.page.goto(console.address("--context", "ann"))
    person.until(".login h2", "Sign in as ann (viewer, tenant acme) on mesh.test?")
    person.until(".login", "You are signed in already as local (admin, whole mesh): that session ends.")
    assert person.faults() == []
    button(person, "Stay local").click()
    person.until(".who", "local")
    person.page.goto(console.address("--context", "ann"))
    button(person, "Sign in").click()
    person.until(".who", "tenant acme")
    assert person.get("/v1/session")[1]["name"] == "ann"
    assert person.complaints() == []
    person.close()


def test_the_browser_of_the_machine_is_had_to_open_it(console: Console) -> None:
    """By a file of the user's own: what a program is started with everybody sees."""
    started = console.directory / "started"
    script = console.directory / "browser"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {started}\n')
    script.chmod(0o700)
    environment = {**console.up.environment, "BROWSER": str(script)}
    command = [sys.executable, "-m", "meshwarden.controlplane", "--context", "ann", "console", "--open"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    (opened,) = started.read_text().split()
    assert opened.startswith("file:///")
    file = Path(opened.removeprefix("file://"))
    assert file.stat().st_mode & 0o777 == 0o600
    code = re.findall(r"#code=([\w-]{43})", file.read_text())[0]
    assert code not in opened + done.stdout + done.stderr
    person = Person(console.browser, opened)
    person.until(".who", "tenant acme")
    person.close()
    # A browser that does not start is told of.
    script.write_text("#!/bin/sh\nexit 3\n")
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (failed.returncode, "leave --open out" in failed.stderr) == (1, True)


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


def button(person: Person, name: str) -> Any:
    """The button of exactly that name."""
    return person.page.get_by_role("button", name=name, exact=True).first


def dialog(person: Person) -> Any:
    """The dialog that is open."""
    return person.page.locator("dialog[open]")


ORDERS = "/v1/resources/AccessPolicy/platform/orders"
LIMIT = """\
kind: RatePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  limits: [{tenant: acme, requests: 5}, {tenant: globex, requests: 1000}]
"""
STAGED = """\
kind: Rollout
metadata: {tenant: acme, name: staged}
spec:
  accessPolicies:
  - kind: AccessPolicy
    metadata: {tenant: acme, name: staged}
    spec: {service: web, allow: [{from: [{tenant: acme, service: intruder}]}]}
  stages: [{percent: 50, hold: 3600s}, {all: true}]
"""


def test_a_change_shows_what_it_does_before_it_can_be_made(console: Console, root: Person) -> None:
    root.open("resources")
    button(root, "Change AccessPolicy platform/orders").click()
    opened, text = dialog(root), root.page.get_by_label("Manifest")
    assert text.input_value().startswith("kind: AccessPolicy\nmetadata:\n  tenant: platform\n  name: orders\n")
    root.until("dialog .foreseen", "Nothing would change.")
    before = root.get(ORDERS)[1]
    live = opened.get_by_role("button", name="Apply")
    text.fill("kind: {")
    root.until("dialog .problem", "not YAML")
    assert live.is_disabled()
    text.fill("a: &a [1]\nb: *a\n")
    root.until("dialog .problem", "anchors and aliases are not taken")
    assert live.is_disabled()
    text.fill(json.dumps({**before, "spec": {**before["spec"], "bogus": EVIL}}))
    root.until("dialog .problem", "bogus")
    assert live.is_disabled()
    # What it would do is held back: as long as that isn't known it can't be done.
    held: list[Any] = []
    root.page.route("**/v1/resources:preview", lambda route: held.append(route))
    spec = {**before["spec"], "allow": [{"from": [{"tenant": "acme", "service": "web"}]}]}
    said = console.up.run("get", "AccessPolicy", "platform/orders", "-o", "yaml")
    text.fill(yaml.safe_dump({**yaml.safe_load(said.stdout), "spec": spec}))
    while not held:
        root.page.wait_for_timeout(20)
    assert live.is_disabled()
    held[0].continue_()
    root.page.unroute("**/v1/resources:preview")
    root.until("dialog .diff del", "globex")
    root.until("dialog .foresight", "would be denied globex/web → platform/orders")
    root.until("dialog .foresight", "AccessPolicy platform/orders spec.allow")
    root.picture("console-apply")
    assert root.faults() == []
    opened.get_by_label("Reason").fill(f"no globex {EVIL}")
    live.click()
    opened.wait_for(state="detached")
    root.until("table", f"no globex {EVIL}")
    assert "globex" not in json.dumps(root.get(ORDERS)[1]["spec"])
    root.picture("console-resources")
    assert root.complaints() == []


def test_a_change_is_taken_back_by_keys_alone(root: Person) -> None:
    keys = root.page.keyboard
    root.open("nodes")
    keys.press("g")
    keys.press("e")
    root.until("h1", "Resources")
    last = root.get("/v1/revisions?pageSize=1")[1]["revisions"][0]["revision"]
    back = button(root, f"Take back revision {last}")
    back.focus()
    keys.press("Enter")
    root.until("dialog .diff ins", "globex")
    root.until("dialog .foresight", "would be allowed globex/web → platform/orders")
    root.picture("console-rollback")
    assert root.faults() == []
    root.tab_to("Roll back")  # which is live by now
    keys.press("Enter")
    dialog(root).wait_for(state="detached")
    root.until("table", f"rollback to {int(last) - 1}")
    assert "globex" in json.dumps(root.get(ORDERS)[1]["spec"])
    assert root.complaints() == []


def trace_named(person: Person, name: str) -> str:
    """The id of a trace that begins with what is called so, once it can be found."""
    for _ in range(300):
        token, left = "", 20
        while left:
            page = person.get(f"/v1/traces?service=acme/web&pageSize=500&pageToken={token}")[1]
            found = [one["traceId"] for one in page.get("traces", []) if one.get("name") == name]
            if found:
                return str(found[0])
            token = page.get("nextPageToken", "")
            left = left - 1 if token else 0
        person.page.wait_for_timeout(200)
    raise AssertionError(f"no trace begins with {name}")


def test_limits_rollouts_and_costs_are_shown_as_they_are(console: Console, root: Person) -> None:
    console.apply(LIMIT + "---\n" + STAGED)
    (agent,) = [one for one in console.up.up_json["agents"] if one["node"] == "node-a"]
    for model in ("gpt-4o", EVIL):
        command = ["exec", "--socket", agent["agent_socket"], "--entry", "acme/web", "--", sys.executable]
        command += ["-m", "meshwarden.examples.model_call", "--model", model]
        done = [sys.executable, "-m", "meshwarden.agents", *command]
        subprocess.run(done, check=True, capture_output=True, timeout=120)
    root.open("limits")
    row = root.page.locator("tr", has_text="platform/orders").filter(has_text="acme")
    row.get_by_text("over").wait_for()
    root.picture("console-limits")
    root.open("rollouts")
    root.until("section[aria-label='Rollout acme/staged'] .stages .now", "50 %")
    root.until("section[aria-label='Rollout acme/staged']", "Judgement of stage 1, so far")
    assert root.faults() == []
    root.picture("console-rollouts")
    for word, then in (("Pause", "paused"), ("Abort", "aborted")):
        button(root, f"{word}…").click()
        assert root.faults() == []
        dialog(root).get_by_role("button", name=word, exact=True).click()
        root.until("section[aria-label='Rollout acme/staged'] h2", then)
    root.open("cost")
    root.until("tr", "gpt-4o")
    # The price of a model that nobody knows is unknown, and so the sum is at least something.
    root.until("tr", "unknown")
    # What is no name of a model has none.
    root.until("tr", "other")
    root.until(".figures", "at least $")
    root.picture("console-cost")
    root.open(f"traces/{trace_named(root, f'chat {EVIL}')}")
    root.page.locator(".waterfall summary").first.click()
    root.until(".waterfall dd", EVIL)
    root.picture("console-trace")
    assert root.faults() == []
    root.open("audit")
    root.until("table", EVIL)
    button(root, "Verify the chain").click()
    root.until(".bar", "events holds")
    root.picture("console-audit")
    assert root.complaints() == []


def test_a_deletion_says_who_would_be_denied(root: Person) -> None:
    root.open("resources")
    button(root, "Delete AccessPolicy platform/billing").click()
    root.until("dialog .diff del", "service: billing")
    root.until("dialog .foresight", "would be denied acme/web")
    # What is still used can't be deleted, and so the button stays dead.
    root.page.keyboard.press("Escape")
    button(root, "Delete Service platform/billing").click()
    root.until("dialog .problem", "platform/billing")
    assert dialog(root).get_by_role("button", name="Delete").is_disabled()
    # Whoever goes back leaves the dialog.
    root.open("nodes")
    dialog(root).wait_for(state="detached")
    root.said.clear()


def test_a_ban_names_what_ends_and_is_made_only_with_a_reason(root: Person) -> None:
    root.open("nodes")
    ban = button(root, "Ban node-b")
    ban.click()
    root.until("dialog li", "platform/billing ■has no endpoint left")
    root.until("dialog li", "called by acme/web")
    live = dialog(root).get_by_role("button", name="Ban", exact=True)
    assert live.is_disabled()
    dialog(root).get_by_label("Reason").fill("it was stolen")
    assert live.is_enabled()
    assert root.faults() == []
    root.picture("console-ban")
    root.page.keyboard.press("Escape")
    dialog(root).wait_for(state="detached")
    assert root.page.evaluate("document.activeElement.ariaLabel") == "Ban node-b"
    assert not any("ban" in node for node in root.get("/v1/nodes")[1]["nodes"])
    root.picture("console-nodes")


def test_what_is_denied_is_seen_and_allowed_again(root: Person) -> None:
    root.open("identities")
    root.until("tr", "spiffe://mesh.test/tenant/globex/service/web")
    root.picture("console-identities")
    button(root, "Deny spiffe://mesh.test/tenant/acme/service/intruder").click()
    root.page.get_by_label("all of its certificates").check()
    root.until("dialog", "Calls that end")
    root.until("dialog", "acme/intruder → platform/orders")
    dialog(root).get_by_label("Reason").fill(EVIL)
    assert root.faults() == []
    dialog(root).get_by_role("button", name="Deny").click()
    root.until("tr", EVIL)
    button(root, "Allow spiffe://mesh.test/tenant/acme/service/intruder").click()
    dialog(root).get_by_role("button", name="Allow").click()
    root.until(".nothing", "Nobody is denied.")
    assert root.complaints() == []


SHOWN = {
    "traces": "acme/web",
    "nodes": "acme/",
    "identities": "tenant/acme/service/web",
    "resources": "AccessPolicy",
    "limits": "acme",
    "cost": "acme",
    "audit": "acme",
}
CHANGING = r"^(Ban|Unban|Deny|Allow|Apply|Change|Delete|Take back|Back to here|Pause|Resume|Abort)\b"


def test_a_viewer_of_a_tenant_has_its_own_rows_and_no_button(console: Console, root: Person) -> None:
    ann = console.person("--context", "ann")
    for path, own in SHOWN.items():
        root.open(path)
        root.until("tbody tr", "globex" if path != "cost" else "acme")
        if path == "traces":
            root.picture(f"console-{path}")
        ann.open(path)
        ann.until("tbody tr", own)
        assert "globex" not in ann.text(), path
        assert ann.page.get_by_role("button", name=re.compile(CHANGING)).count() == 0, path
        if path in ("nodes", "identities", "resources"):
            assert root.page.get_by_role("button", name=re.compile(CHANGING)).count() > 0, path
    assert ann.get("/v1/certificates?tenant=globex")[0] == 403
    ann.close()


def test_a_page_says_that_nobody_answers_and_goes_on_by_itself(root: Person) -> None:
    root.open("nodes")
    root.until("tbody tr", "node-a")
    root.page.context.set_offline(True)
    root.until(".fault", "does not answer")
    # What was known stays.
    assert "node-a" in root.text()
    root.page.context.set_offline(False)
    root.page.locator(".fault .problem").wait_for(state="detached")
    root.until(".state", "live")


def test_a_node_is_banned_and_let_back_by_keys_alone(console: Console, root: Person) -> None:
    root.said.clear()  # of having been cut off, in the test before
    console.operator("vic", "--role", "viewer")
    console.operator("tom", "--tenant", "acme", "--role", "admin")
    others = [console.person("--context", name) for name in ("vic", "tom")]
    for other in others:
        other.open("nodes")
        other.until("tbody tr", "node-b")
        assert other.page.get_by_role("button", name=re.compile(CHANGING)).count() == 0
        assert other.post("/v1/nodes/node-b:ban", {"reason": "I want to"}) == 403
    keys = root.page.keyboard
    root.open("graph")
    keys.press("g")
    keys.press("n")
    row = root.page.locator("tbody tr", has_text="node-b").first
    row.get_by_text("connected").wait_for()
    held: list[Any] = []
    root.page.route("**/v1/certificates?*", lambda route: held.append(route))
    root.tab_to("Ban node-b")
    keys.press("Enter")
    while not held:
        root.page.wait_for_timeout(20)
    root.page.locator("dialog input").focus()
    keys.type(f"stolen {EVIL}")
    assert dialog(root).get_by_role("button", name="Ban", exact=True).is_disabled(), "what ends is not known yet"
    held[0].continue_()
    root.page.unroute("**/v1/certificates?*")
    root.until("dialog li", "called by acme/web")
    root.tab_to("Ban")
    keys.press("Enter")
    dialog(root).wait_for(state="detached")
    row.locator(".badge", has_text="banned").wait_for()
    row.get_by_text(f"stolen {EVIL}").wait_for()
    said = console.up.run("node", "list")
    assert re.search(r"node-b.*banned", said.stdout), said.stdout
    for other in others:
        assert other.post("/v1/nodes/node-b:unban", {}) == 403
        other.close()
    root.tab_to("Unban node-b")
    keys.press("Enter")
    root.until("dialog", f"It was banned by spiffe://mesh.test/operator/local: stolen {EVIL}")
    assert root.faults() == []
    root.tab_to("Unban")
    keys.press("Enter")
    dialog(root).wait_for(state="detached")
    # What it was is gone with the ban: it has to attest anew.
    button(root, "Unban node-b").wait_for(state="detached")
    assert not any("ban" in node for node in root.get("/v1/nodes")[1]["nodes"])
    assert root.complaints() == []


def test_who_looks_while_the_control_plane_is_started_anew_signs_in_again_and_goes_on(
    console: Console, root: Person
) -> None:
    up, page = console.up, root.page
    root.open("nodes")
    root.until(".state", "live")
    page.evaluate("globalThis.stayed = true")
    (server,) = [one for one in record.load(up.state_dir) if one.name == "server"]
    up.process.send_signal(signal.SIGSTOP)  # so that it is away for as long as that is looked at
    try:
        os.kill(server.pid, signal.SIGKILL)
        root.until(".state", "connection lost")
        root.until(".where", "what is shown is as it was")
        root.until(".fault", "does not answer")
        assert "node-a" in root.text()
    finally:
        up.process.send_signal(signal.SIGCONT)
    root.until(".login .problem", "the control plane has been started anew")
    root.until(".login", "meshwarden console")
    assert root.faults() == []
    # Nobody who is not asked to asks again and again.
    before = len(root.requests)
    up.until(lambda: up.run("status").returncode == 0)
    page.get_by_label("One-time code").fill(console.address().partition("#code=")[2])
    button(root, "Go on").click()
    root.until(".login h2", "Sign in as local")
    assert [request.url.rpartition("/")[2] for request in root.requests[before:]] == ["session:preview"]
    button(root, "Sign in").click()
    root.until("h1", "Nodes")
    root.until(".state", "live")
    root.until("tbody tr", "node-a")
    assert page.evaluate("globalThis.stayed"), "and nothing was loaded anew"
