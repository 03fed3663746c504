// Limits per tenant: how each is divided over the mesh at this moment, and why so.

import { h } from "../parts/dom.js";
import { live } from "../parts/live.js";
import { rate, whole } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { ago } from "../parts/time.js";

export const page = { path: "limits", title: "Limits", key: "l", show };

function show({ get, parameters }) {
  const said = h("p", { class: "quiet" });
  const limits = table({
    label: "Limits",
    id: (row) => `${row.policy} ${row.tenant} ${row.service} ${row.method} ${row.unit}`,
    columns: COLUMNS,
    sort: 1,
    text: (row) => row.reason,
    none: "No limit of the mesh is in use. A RatePolicy makes one; what it divides is shown once somebody has called.",
  });
  const asked = live(async () => {
    const answer = await get("/v1/quotas", { policy: parameters.query.policy ?? "" });
    limits.update((answer.quotas ?? []).map(row));
    said.textContent = answer.divides === undefined ? "This control plane divides no limits: another one of its store does, or there are none." : answer.learns ? "It still learns what was given before it began, and gives nothing more until it has." : "";
    said.hidden = !said.textContent;
  }, 2000);
  return { element: h("div", { class: "page" }, h("h1", null, "Limits"), asked.fault, said, limits.element), stop: asked.stop };
}

function row(given) {
  const bucket = given.bucket ?? {};
  return {
    policy: bucket.policy ?? "",
    tenant: bucket.tenant ?? "",
    service: bucket.service ?? "",
    method: bucket.method ?? "",
    unit: given.unit ?? "requests",
    limit: given.limit ?? 0,
    demand: given.demand ?? 0,
    share: given.share ?? 0,
    held: given.held ?? 0,
    inUse: given.inUse ?? 0,
    allowed: Number(given.allowed ?? 0),
    denied: Number(given.denied ?? 0),
    shadowed: Number(given.shadowed ?? 0),
    reason: given.reason ?? "",
    period: given.period,
    points: (given.points ?? []).map((point) => `${point.node} ${point.point}: ${rate(point.share ?? 0)} of ${rate(point.demand ?? 0)}`),
  };
}

/** How much of the limit is wanted: of a period, how much of it is used. */
function wanted(row) {
  const used = row.period ? (row.period.used ?? 0) : row.unit === "concurrent" ? row.inUse : row.demand;
  return row.limit ? used / row.limit : 0;
}

function state(row) {
  const asked = wanted(row);
  if (asked > 1) return ["limited", row.period ? "used up" : "over"];
  return asked > 0.8 ? ["warn", "near"] : ["good", "within"];
}

function meter(row) {
  const asked = wanted(row);
  const size = row.period ? (row.period.used ?? 0) : row.unit === "concurrent" ? row.inUse : row.demand;
  return h(
    "div",
    { class: "measured" },
    h("span", { class: `meter ${asked > 1 ? "bad" : asked > 0.8 ? "warn" : ""}`, style: { "--share": `${Math.min(asked, 1) * 100}%` }, "aria-hidden": "true" }, h("span", null)),
    h("span", null, amount(size, row)),
  );
}

function amount(number, row) {
  return row.unit === "concurrent" || row.period ? whole(Math.round(number)) : `${rate(number)}/s`;
}

const COLUMNS = [
  { title: "Policy", value: (row) => row.policy },
  { title: "Tenant", value: (row) => row.tenant },
  { title: "Of", value: (row) => [row.unit !== "requests" && `${row.unit} of`, row.service, row.method, !row.service && !row.method && "all calls"].filter(Boolean).join(" ") },
  { title: "State", value: (row) => state(row)[1], show: (row) => badge(...state(row)) },
  { title: "Wanted", value: wanted, show: meter },
  { title: "Limit", value: (row) => row.limit, show: (row) => [amount(row.limit, row), row.period && h("div", { class: "quiet" }, "until ", ago(row.period.end))].flat(), align: "right" },
  { title: "Share", value: (row) => row.share, show: (row) => (row.period ? `${whole(Math.round(row.period.left ?? 0))} left` : amount(row.share, row)), align: "right" },
  { title: "Let in", value: (row) => row.allowed, show: (row) => whole(row.allowed), align: "right" },
  { title: "Refused", value: (row) => row.denied, show: refused, align: "right" },
  { title: "Why", value: (row) => row.reason, show: (row) => [row.reason, ...row.points.map((text) => h("div", { class: "quiet" }, text))], wide: true },
];

function refused(row) {
  const shadowed = row.shadowed > 0 && h("div", { class: "quiet" }, `${whole(row.shadowed)} would be`);
  return [row.denied ? h("span", { class: "text-limited" }, whole(row.denied)) : "0", shadowed];
}
