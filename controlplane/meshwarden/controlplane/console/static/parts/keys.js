// Keys: "g" and a page's key goes to it, "/" finds, "?" lists them all.

import { dialog } from "./dialog.js";
import { h } from "./dom.js";

const known = new Map();
let went = 0;

/** Gives a key a meaning: `key("/", "Find", run)`. A key of two, "g n", is pressed one after the other. */
export function key(name, title, run) {
  known.set(name, { title, run });
  return () => known.delete(name);
}

document.addEventListener("keydown", (event) => {
  const isText = event.target.matches?.("input, textarea, select, [contenteditable]");
  if (isText || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isSecond = Date.now() - went < 1500;
  went = event.key === "g" ? Date.now() : 0;
  const found = known.get(isSecond ? `g ${event.key}` : event.key);
  if (event.key === "?") {
    list();
  } else if (found) {
    event.preventDefault();
    found.run();
  }
});

/** Shows which keys there are. */
export function list() {
  const rows = [...known, ["?", { title: "These keys" }]].map(([name, { title }]) =>
    h("tr", null, h("td", null, name.split(" ").map((one) => h("kbd", null, one))), h("td", null, title)),
  );
  dialog({ title: "Keys", body: h("table", { class: "keys" }, h("tbody", null, rows)) });
}
