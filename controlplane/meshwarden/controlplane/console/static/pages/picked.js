// What is picked in the graph: a service with its edges, or an edge with the reason why it is allowed or denied.

import { kindOf } from "../parts/kind.js";
import { h, put } from "../parts/dom.js";
import { explain, explained } from "../parts/explained.js";
import { percent, rate } from "../parts/number.js";
import { badge, problem } from "../parts/problem.js";
import { span } from "../parts/time.js";

/** How something does, in a word. */
export const WORDS = { bad: "failing", warn: "some fail", denied: "denied", limited: "limited", good: "goes well", idle: "idle" };
const TLS = { PROVEN: ["good", "proven by both sides"], SAID: ["good", "by the caller's word"], NONE: ["warn", "none: caller unknown"] };

export function servicePanel(service, mesh, pick) {
  const into = [...mesh.edges.values()].filter((edge) => edge.destination === service.service);
  const out = [...mesh.edges.values()].filter((edge) => edge.source === service.service);
  const isDown = service.endpoints && !service.healthyEndpoints;
  return h(
    "section",
    { class: "panel", "aria-label": service.service },
    h("div", { class: "panel-head" }, h("h2", null, service.folded ? `${service.folded} more of ${service.service.split("/")[0]}` : service.service), badge(isDown ? "bad" : kindOf(service), isDown ? "down" : WORDS[kindOf(service)])),
    facts([
      ["Calls to it", `${rate(service.callsPerS)}/s`],
      ["Errors", share(service.errorsPerS, service.callsPerS)],
      ["Slowest p95", service.p95S ? span(service.p95S) : "–"],
      ["Endpoints", service.external ? "external" : `${service.healthyEndpoints ?? 0} of ${service.endpoints ?? 0} take calls`],
      ["Regions", (service.regions ?? []).join(", ") || "–"],
      service.burn >= 0.01 && ["Budget burns", `${rate(service.burn)}×`],
    ]),
    neighbours("Called by", into, "source", pick),
    neighbours("Calls", out, "destination", pick),
    !service.folded && h("a", { href: `#service/${service.service}`, "data-focus": "open" }, "Open its page"),
  );
}

function neighbours(title, edges, end, pick) {
  if (!edges.length) return null;
  const rows = edges.slice(0, 40).map((edge) =>
    h(
      "li",
      null,
      badge(kindOf(edge), h("span", { class: "hidden" }, WORDS[kindOf(edge)])),
      h("button", { type: "button", class: "link", "data-focus": `${title} ${edge[end]}`, onclick: () => pick(edge, false) }, edge[end]),
      h("span", { class: "quiet" }, `${rate(edge.callsPerS)}/s`),
    ),
  );
  return h("div", null, h("h3", null, title), h("ul", { class: "neighbours" }, rows));
}

const reasons = new Map(); // {edge: element}, so that what was asked once stays while numbers change

export function edgePanel(edge, api) {
  const name = `${edge.source} → ${edge.destination}`;
  const isFolded = name.includes("/*") || name.includes("unknown/");
  const why = reasons.get(name) ?? h("div", { class: "reasons" });
  reasons.set(name, why);
  if (reasons.size > 50) reasons.delete(reasons.keys().next().value);
  const button = h("button", { type: "button", "data-focus": "why", onclick: () => ask(edge, api, why) }, "Why? (explain)");
  const [kind, text] = TLS[edge.mutualTls] ?? ["idle", "not known"];
  return h(
    "section",
    { class: "panel", "aria-label": name },
    h("div", { class: "panel-head" }, h("h2", null, link(edge.source), " → ", link(edge.destination)), badge(kindOf(edge), WORDS[kindOf(edge)])),
    facts([
      ["Calls", `${rate(edge.callsPerS)}/s`],
      ["Errors", share(edge.errorsPerS, edge.callsPerS)],
      ["Denied", share(edge.deniedPerS, edge.callsPerS)],
      ["Limited", share(edge.limitedPerS, edge.callsPerS)],
      ["p50, 95, 99", edge.p99S ? [edge.p50S ?? 0, edge.p95S ?? 0, edge.p99S].map(span).join(", ") : "–"],
      ["mTLS", badge(kind, text)],
      ["Counted in", (edge.regions ?? []).join(", ") || "–"],
    ]),
    !isFolded && button,
    why,
  );
}

async function ask(edge, api, why) {
  put(why, h("p", { class: "quiet" }, "asks …"));
  try {
    put(why, explained(await explain(api, edge.source, edge.destination)));
  } catch (error) {
    put(why, problem(error));
  }
}

function facts(rows) {
  return h("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
}

function share(part, all) {
  return part ? `${rate(part)}/s, ${percent(part / all)}` : "0";
}

/** A link to a service's page; the name alone of what has none: several folded together, or a caller that showed no certificate. */
export function link(name) {
  return name.includes("/*") || name.startsWith("unknown/") ? name : h("a", { href: `#service/${name}` }, name);
}
