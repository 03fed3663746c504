"""A person at the console: Debian's Chromium with a session, what it complains of, and what axe finds."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Request, sync_playwright

DEADLINE_MS = 60_000
CHROMIUM = "/usr/bin/chromium"
AXE = Path(__file__).parent / "node/node_modules/axe-core/axe.min.js"
GRAVE = ("serious", "critical")
# Where pictures go that are looked at, or come into the documentation; none are taken without it.
PICTURES = os.environ.get("MESHWARDEN_PICTURES", "")
_WATCHED = """
globalThis.complaints = [];
addEventListener("securitypolicyviolation", (it) => complaints.push(`${it.violatedDirective} ${it.blockedURI}`));
globalThis.alert = () => complaints.push("a script of a name's ran");
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        # As root, as in a container, it has no sandbox of its own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """Somebody who looks at the console."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        dark: bool = False,
        width: int = 1360,
        height: int = 860,
        signs_in: bool = True,
    ) -> None:
        """Opens an address that `meshwarden console` has printed, and says yes; the mesh's own roots are no browser's.

        Whoever does not sign in is left where the page asks.
        """
        self.context = browser.new_context(
            ignore_https_errors=True,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self.context.set_default_timeout(DEADLINE_MS)
        self.context.add_init_script(_WATCHED)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.requests: list[Request] = []
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.goto(url)
        if signs_in:
            self.page.get_by_role("button", name="Sign in").click()
            self.page.locator("nav a").first.wait_for()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.said.append(text)

    def open(self, hash_: str) -> None:
        """Goes to a page of the console."""
        self.page.evaluate("(hash) => { location.hash = hash; }", hash_)
        self.page.locator("main h1, main .empty").first.wait_for()

    def text(self) -> str:
        """All that the page shows."""
        return self.page.locator("body").inner_text()

    def until(self, selector: str, text: str) -> None:
        """Waits until something is shown that has a text."""
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def get(self, path: str) -> Any:
        """What the API answers to this person."""
        return self.page.evaluate(
            "async (path) => { const a = await fetch(path); return [a.status, await a.json()]; }", path
        )

    def post(self, path: str, body: Any) -> int:
        """The status of what a page of the console's own origin sends for this person."""
        sent = """async ([path, body]) => {
          const headers = { "content-type": "application/json" };
          return (await fetch(path, { method: "POST", headers, body: JSON.stringify(body) })).status;
        }"""
        return int(self.page.evaluate(sent, [path, body]))

    def tab_to(self, label: str) -> None:
        """Goes by the Tab key to what is called so."""
        for _ in range(200):
            if self.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent") == label:
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"no key leads to {label}")

    def complaints(self) -> list[str]:
        """What the browser has complained of: of the policy, of errors, of scripts that should be none."""
        return [*self.said, *self.page.evaluate("globalThis.complaints")]

    def faults(self, *rules: str) -> list[str]:
        """What axe finds that keeps somebody from using the page; by some of its rules, or by all."""
        # Evaluated beside the page, whose policy takes no script but its own.
        self.page.evaluate(_axe())
        options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
        found = self.page.evaluate("(options) => axe.run(document, options)", options)
        return [
            f"{one['id']}: {one['help']}: {', '.join(str(node['target']) for node in one['nodes'][:4])}"
            for one in found["violations"]
            if one["impact"] in GRAVE
        ]

    def picture(self, name: str) -> None:
        """Keeps what is to be seen."""
        if PICTURES:
            self.page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))

    def close(self) -> None:
        """Leaves."""
        self.context.close()


@functools.cache
def _axe() -> str:
    return AXE.read_text()
