// Who shows neither a session nor a certificate: how one gets in.

import { h, put } from "../parts/dom.js";
import { problem } from "../parts/problem.js";

/** The page; `enter(code)` begins a session, or throws. */
export function login(enter, reason) {
  const fault = h("div", null, reason && problem(reason));
  const field = h("input", { name: "code", autocomplete: "one-time-code", spellcheck: "false", required: true, "aria-label": "One-time code" });
  const form = h("form", { onsubmit: submit }, field, h("button", { type: "submit", class: "primary" }, "Sign in"));

  async function submit(event) {
    event.preventDefault();
    try {
      await enter(field.value.trim());
    } catch (error) {
      put(fault, problem(error));
      field.select();
    }
  }

  return h(
    "main",
    { id: "main", class: "login" },
    h("h1", null, h("img", { src: "/console/icon.svg", alt: "", width: "28", height: "28" }), "Meshwarden"),
    h("p", null, "Where you are an operator, run"),
    h("pre", null, h("code", null, "meshwarden console")),
    h("p", null, "and open the link that it prints, or enter its code here. It can be used once, within a minute."),
    form,
    fault,
  );
}
