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

/** Asks why a call is let through or not, of a method that was called of late, or of any. */
export async function explain({ get, send }, from, to) {
  const [method] = await methods(get, from, to);
  return send("POST", "/v1/calls:explain", { from, to, method: method ?? "/" });
}

/** The methods that one service was seen to call of another of late, those first that were refused. */
async function methods(get, from, to) {
  const [tenant, service] = from.split("/");
  const rows = (await get("/v1/calls", { limit: 1000 })).calls ?? [];
  const own = rows.filter((row) => row.destination === to && row.source?.endsWith(`/tenant/${tenant}/service/${service}`));
  return own.sort((one, other) => (other.decision === "DENIED") - (one.decision === "DENIED")).map((row) => row.method);
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
