// What needs somebody's attention now, the worst first: what fails, burns, is denied, has no endpoints, or lags.

import { kindOf } from "../parts/kind.js";
import { h } from "../parts/dom.js";
import { percent, rate } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { seconds, span } from "../parts/time.js";

const MOST = 30;
// A node is behind for a moment after each change.
const LAG_S = 1;

/** The panel; `pick(thing)` is told which service or edge is meant. */
export function attention(mesh, pick) {
  const found = [...burning(mesh), ...failing(mesh), ...lagging(mesh), ...down(mesh), ...refused(mesh)];
  const shown = found.slice(0, MOST).map(([kind, word, name, detail, open]) =>
    h(
      "li",
      null,
      badge(kind, word),
      typeof open === "string"
        ? h("a", { href: open, "data-focus": `${word} ${name}` }, name)
        : h("button", { type: "button", class: "link", "data-focus": `${word} ${name}`, onclick: () => pick(open, false) }, name),
      h("span", { class: "quiet" }, detail),
    ),
  );
  return h(
    "section",
    { class: "panel attention", "aria-label": "Needs attention" },
    h("div", { class: "panel-head" }, h("h2", null, "Needs attention"), h("span", { class: "quiet" }, found.length || "")),
    shown.length ? h("ul", null, shown) : h("p", null, badge("good", "Nothing: all goes well.")),
  );
}

function* burning(mesh) {
  for (const one of sorted(mesh.objectives, (objective) => objective.burn ?? 0)) {
    if (one.burn >= 1) yield [one.burn >= 14.4 ? "bad" : "warn", "burning", one.slo, `${rate(one.burn)}× too fast`, `#service/${one.service}`];
  }
}

function* failing(mesh) {
  for (const one of sorted(mesh.edges, (edge) => edge.errorsPerS ?? 0)) {
    if (one.errorsPerS > 0) yield [kindOf(one) === "bad" ? "bad" : "warn", "failing", `${one.source} → ${one.destination}`, percent(one.errorsPerS / one.callsPerS), one];
  }
}

function* refused(mesh) {
  for (const one of sorted(mesh.edges, (edge) => (edge.deniedPerS ?? 0) + (edge.limitedPerS ?? 0))) {
    if (one.deniedPerS > 0) yield ["denied", "denied", `${one.source} → ${one.destination}`, `${rate(one.deniedPerS)}/s`, one];
    if (one.limitedPerS > 0) yield ["limited", "limited", `${one.source} → ${one.destination}`, `${rate(one.limitedPerS)}/s`, one];
  }
}

function* down(mesh) {
  for (const one of mesh.services.values()) {
    if (one.endpoints && !one.healthyEndpoints) yield ["bad", "down", one.service, `none of ${one.endpoints} endpoints`, one];
  }
}

function* lagging(mesh) {
  for (const one of mesh.nodes.values()) {
    if (!one.connected) yield ["bad", "away", one.node, "goes on with what it has", "#nodes"];
    else if (one.nacks) yield ["bad", "refuses", one.node, `${one.nacks} resources`, "#nodes"];
    else if (seconds(one.behind) >= LAG_S) yield ["warn", "lagging", one.node, `${span(seconds(one.behind))} behind`, "#nodes"];
  }
}

/** What has a value above zero, the greatest first. */
function sorted(things, value) {
  return [...things.values()].filter((one) => value(one) > 0).sort((one, other) => value(other) - value(one));
}
