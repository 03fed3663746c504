// What went wrong, with every fault of it; and the small words that say how something is.

import { h } from "./dom.js";

/** Shows a `Problem`, or what else was thrown. */
export function problem(error) {
  const faults = error.faults ?? [];
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("strong", null, error.title || "Something went wrong"),
    faults.length
      ? h("ul", null, faults.map((fault) => h("li", null, fault.field && h("code", null, fault.field), " ", fault.message)))
      : h("p", null, error.detail || error.message),
  );
}

const MARKS = { good: "●", warn: "▲", bad: "■", denied: "✕", limited: "◆", idle: "○", busy: "◌" };

/** A word with a mark whose shape says what its colour says: good, warn, bad, denied, limited, idle or busy. */
export function badge(kind, text) {
  return h("span", { class: `badge ${kind}` }, h("span", { class: "mark", "aria-hidden": "true" }, MARKS[kind] ?? "○"), text);
}

/** What a page says where there is nothing. */
export function empty(title, ...hint) {
  return h("div", { class: "empty" }, h("strong", null, title), h("p", null, ...hint));
}
