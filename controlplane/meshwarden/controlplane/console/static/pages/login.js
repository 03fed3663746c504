// Who shows neither a session nor a certificate: how one gets in. A code alone lets nobody in: whose it is is shown first,
// since a link may be somebody else's, who would have one work as that somebody.

import { send } from "../parts/api.js";
import { h, put } from "../parts/dom.js";
import { badge, problem } from "../parts/problem.js";
import { ago, clock } from "../parts/time.js";

/** The page, with a code that was in the address or without, and a problem that led here. `enter(me)` is called for who is in, `leave()` for who keeps the session that the browser has. */
export function login({ code = "", reason = null, enter, leave }) {
  const fault = h("div", null, reason && problem(reason));
  const place = h("div", { class: "page" });

  /** Runs something by a code; where it fails the page asks for another one. */
  async function attempt(given, run) {
    put(fault);
    try {
      await run(given);
    } catch (error) {
      ask();
      put(fault, problem(error));
    }
  }

  async function look(given) {
    const offered = await send("POST", "/v1/session:preview", { code: given });
    const heading = h("h2", { tabindex: "-1" }, `Sign in as ${named(offered.session)} on ${offered.session.trustDomain}?`);
    const accept = () => attempt(given, async () => enter(await send("POST", "/v1/session", { code: given })));
    const cancel = () => (offered.replaced ? leave() : ask());
    put(
      place,
      heading,
      offered.replaced && h("p", null, badge("warn", "You are signed in already"), ` as ${named(offered.replaced)}: that session ends.`),
      facts([
        ["Identity", offered.session.spiffeId],
        ["Certificate", h("code", { title: "SHA-256" }, offered.certificateSha256)],
        ["Session ends", clock(offered.session.expireTime)],
        ["Code ends", ago(offered.codeExpireTime)],
      ]),
      h("p", { class: "quiet" }, "If you have not run ", h("code", null, "meshwarden console"), " yourself just now, do not go on: what you then do would be done as somebody else. The command has printed the same certificate."),
      h("div", { class: "bar" }, h("button", { type: "button", class: "primary", onclick: accept }, "Sign in"), h("button", { type: "button", class: "plain", onclick: cancel }, offered.replaced ? `Stay ${offered.replaced.name}` : "Cancel")),
    );
    heading.focus(); // not the button: a key that was meant for another page presses it not
  }

  /** Asks for a code. */
  function ask() {
    const field = h("input", { name: "code", autocomplete: "off", spellcheck: "false", required: true, "aria-label": "One-time code" });
    const submit = (event) => {
      event.preventDefault();
      attempt(field.value.trim(), look);
    };
    put(
      place,
      h("p", null, "Where you are an operator, run"),
      h("pre", null, h("code", null, "meshwarden console")),
      h("p", null, "and open the link that it prints, or enter its code here. It can be used once, within a minute."),
      h("form", { onsubmit: submit }, field, h("button", { type: "submit", class: "primary" }, "Go on")),
      code && h("button", { type: "button", class: "plain", onclick: leave }, "Go on without a code"),
    );
  }

  if (code) attempt(code, look);
  else ask();
  return h("main", { id: "main", class: "login" }, h("h1", null, h("img", { src: "/console/icon.svg", alt: "", width: "28", height: "28" }), "Meshwarden"), place, fault);
}

function named({ name, role, tenant }) {
  return `${name} (${role.toLowerCase()}, ${tenant ? `tenant ${tenant}` : "whole mesh"})`;
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
}
