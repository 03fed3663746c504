// Why a call is let through or not, as `meshwarden explain` tells it.

import { h } from "./dom.js";
import { badge } from "./problem.js";

const DECISIONS = { ALLOWED: ["good", "allowed"], DENIED: ["denied", "denied"], LIMITED: ["limited", "limited"] };

/** What `POST /v1/calls:explain` answers: the decision, then each step of it. */
export function explained(answer) {
  const [kind, word] = DECISIONS[answer.decision] ?? ["idle", answer.visible ? "not decided" : "not visible"];
  return h(
    "div",
    { class: "explained" },
    h("p", null, badge(kind, word), h("span", { class: "quiet" }, ` at revision ${answer.revision ?? 0}`)),
    h("ol", null, (answer.steps ?? []).map(step)),
  );
}

function step({ stage, resource, field, text, ok }) {
  const where = resource ? `${resource}${field ? ` ${field}` : ""}` : "";
  return h(
    "li",
    null,
    badge(ok ? "good" : "denied", stage),
    h("span", null, text, where && h("span", { class: "quiet" }, " · ", h("code", null, where))),
  );
}
