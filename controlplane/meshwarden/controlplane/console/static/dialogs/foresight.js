// What a batch would do to whoever calls, before it is made: PreviewService.Preview, for people.

import { h } from "../parts/dom.js";
import { whole } from "../parts/number.js";
import { badge } from "../parts/problem.js";

const KINDS = {
  DENIED: ["denied", "would be denied"],
  ALLOWED: ["good", "would be allowed"],
  ROUTED: ["busy", "would be routed otherwise"],
  LIMITED: ["limited", "would be limited otherwise"],
  HIDDEN: ["warn", "would not see it any more"],
  SEEN: ["good", "would see it"],
};
const MOST = 50;

/** Who would be denied, allowed, routed or limited otherwise, by which rule now and then; and how far it is pushed. */
export function foresight(answer) {
  const changes = answer.changes ?? [];
  const reach = answer.reach ?? {};
  const names = answer.names ?? [];
  const left = Math.max(0, changes.length - MOST) + (answer.omittedChanges ?? 0);
  return h(
    "section",
    { class: "foresight", "aria-label": "What it would do" },
    h("h3", null, "What it does to calls"),
    changes.length === 0 && h("p", null, badge("good", "Nobody's calls come to something else.")),
    h("ul", null, changes.slice(0, MOST).map(change)),
    left > 0 && h("p", { class: "quiet" }, `${whole(left)} more changes are left out.`),
    (answer.overruled ?? []).map(overruled),
    names.map((one) => h("p", null, badge("warn", `${one.name} would mean ${meaning(one.after)} to tenant ${one.tenant}, and means ${meaning(one.before)}`))),
    answer.omittedServices > 0 && h("p", null, badge("warn", `${whole(answer.omittedServices)} services were not looked at, for there was no more time`)),
    h("p", { class: "quiet" }, `Goes to ${reach.atMost ? "at most " : ""}${whole(reach.nodes ?? 0)} of ${whole(reach.connectedNodes ?? 0)} nodes and ${whole(reach.dataPlanes ?? 0)} of ${whole(reach.connectedDataPlanes ?? 0)} data planes; held against revision ${answer.revision ?? "?"}.`),
  );
}

function change(one) {
  const limits = [...(one.methods ?? []), ...(one.headers ?? [])].join(", ");
  return h(
    "li",
    null,
    badge(...(KINDS[one.kind] ?? ["idle", "would change"])),
    " ",
    h("b", null, (one.from ?? []).join(", ")),
    " → ",
    h("b", null, one.to),
    limits && h("span", { class: "quiet" }, ` for ${limits}`),
    one.atOtherTimes && h("span", { class: "quiet" }, " at other times than now"),
    h("div", { class: "why" }, h("span", { class: "quiet" }, "now "), decider(one.before)),
    h("div", { class: "why" }, h("span", { class: "quiet" }, "then "), decider(one.after)),
  );
}

/** A rule of the batch that others overrule: it says something, and does not decide. */
function overruled(one) {
  const whose = (one.from ?? []).join(", ");
  const how = one.wholly ? "decides of no call" : "does not decide of some calls";
  const text = `${one.resource} ${one.field} ${how}${whose ? ` of ${whose}` : ""}: ${one.byResource} ${one.byField} comes before it`;
  return h("p", null, badge("warn", text));
}

function decider(one) {
  if (!one) return "nothing is said of it";
  const where = [one.resource, one.field].filter(Boolean).join(" ");
  return [one.text, where && h("span", { class: "quiet" }, ` (${where})`)];
}

function meaning(services) {
  return (services ?? []).length === 1 ? services[0] : (services ?? []).length ? `none of ${services.join(", ")}` : "nothing";
}
