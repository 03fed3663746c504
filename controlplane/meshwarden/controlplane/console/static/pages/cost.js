// What generative models cost: tokens and estimated money. A price that is unknown is shown as that, never as nothing.

import { h, put } from "../parts/dom.js";
import { live } from "../parts/live.js";
import { whole } from "../parts/number.js";
import { badge } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { clock } from "../parts/time.js";

const SPANS = [["1 h", 3600], ["1 d", 86400], ["7 d", 604800], ["30 d", 2592000]];
const WAYS = [
  ["each model of each service", ["TENANT", "SERVICE", "PROVIDER", "MODEL"]],
  ["tenants", ["TENANT"]],
  ["services", ["TENANT", "SERVICE"]],
  ["models", ["PROVIDER", "MODEL"]],
  ["days", ["DAY"]],
  ["hours", ["HOUR"]],
];

export const page = { path: "cost", title: "Cost", key: "c", show };

function show({ get }) {
  const choice = { way: 0, span: 86400 };
  const figures = h("dl", { class: "figures" });
  const said = h("p", { class: "quiet" });
  const place = h("div", null);
  let costs = made();
  const way = h("select", { onchange: (event) => choose({ way: Number(event.target.value) }) }, WAYS.map(([name], at) => h("option", { value: at }, name)));
  const spans = SPANS.map(([name, size]) => h("button", { type: "button", "aria-pressed": String(size === choice.span), onclick: (event) => choose({ span: size }, event.target) }, name));

  function choose(given, pressed) {
    Object.assign(choice, given);
    for (const button of pressed ? spans : []) button.setAttribute("aria-pressed", String(button === pressed));
    costs = made();
    asked.now();
  }

  function made() {
    const fields = WAYS[choice.way][1];
    const found = table({ label: "Cost", id: (row) => fields.map((field) => row[FIELD[field]]).join("\n"), columns: columns(fields), sort: fields.length, descending: true, none: "No span has told of a call of a model in this time." });
    put(place, found.element);
    return found;
  }

  const asked = live(async () => {
    const start = new Date(Date.now() - choice.span * 1000).toISOString();
    const [fields, mine] = [WAYS[choice.way][1], costs];
    const answer = await get("/v1/costs", { start, by: fields });
    if (mine !== costs) return;
    costs.update((answer.costs ?? []).map(row));
    const total = row(answer.total ?? {});
    put(figures, figure("Estimated money", money(total)), figure("Calls", whole(total.calls)), figure("Tokens in", whole(total.input)), figure("Tokens out", whole(total.output)), total.unpriced > 0 && figure("Tokens without a known price", whole(total.unpriced)));
    said.textContent = `List prices of ${answer.prices ?? "nobody"}${answer.pricesDate ? `, as of ${clock(answer.pricesDate).slice(0, 10)}` : ""}; as region ${answer.region ?? "?"} has counted.${answer.omitted ? ` ${answer.omitted} sums are left out.` : ""}`;
  }, 15000);
  const bar = h("div", { class: "bar" }, h("label", null, "By", way), h("div", { role: "group", "aria-label": "Of the last" }, spans));
  return { element: h("div", { class: "page" }, h("h1", null, "Cost"), asked.fault, bar, figures, place, said), stop: asked.stop };
}

const FIELD = { TENANT: "tenant", SERVICE: "service", PROVIDER: "provider", MODEL: "model", DAY: "start", HOUR: "start" };
const TITLE = { TENANT: "Tenant", SERVICE: "Service", PROVIDER: "Provider", MODEL: "Model", DAY: "Day", HOUR: "Hour" };

function row(given) {
  const count = (field) => Number(given[field] ?? 0);
  return {
    tenant: given.tenant ?? "",
    service: given.service ?? "",
    provider: given.provider ?? "",
    model: given.model ?? "",
    start: given.start ?? "",
    calls: count("calls"),
    input: count("inputTokens"),
    cached: count("cachedTokens"),
    output: count("outputTokens"),
    usd: given.usd ?? null,
    unpriced: count("unpricedTokens"),
    unmetered: count("unmeteredCalls"),
    refused: count("refusedCalls"),
    unpricedCalls: count("unpricedCalls"),
  };
}

/** The money: all of it, at least some of it, or that it is not known. */
function money(row) {
  if (!row.calls && !row.unpriced) return "none";
  if (row.usd === null) return badge("warn", "unknown");
  const sum = `$${row.usd.toFixed(row.usd < 1 ? 4 : 2)}`;
  return row.unpriced || row.unmetered || row.refused ? badge("warn", `at least ${sum}`) : sum;
}

function figure(title, value) {
  return h("div", { class: "figure" }, h("dt", null, title), h("dd", null, value));
}

function columns(fields) {
  const number = (title, field) => ({ title, value: (row) => row[field], show: (row) => whole(row[field]), align: "right" });
  return [
    ...fields.map((field) => ({ title: TITLE[field], value: (row) => row[FIELD[field]], show: (row) => shown(field, row[FIELD[field]]) })),
    { title: "Estimated money", value: (row) => row.usd ?? -1, show: money, align: "right" },
    number("Calls", "calls"),
    number("Tokens in", "input"),
    number("of them cached", "cached"),
    number("Tokens out", "output"),
    number("Tokens without a price", "unpriced"),
    { title: "Left out", value: (row) => row.unmetered + row.refused, show: leftOut },
  ];
}

function shown(field, value) {
  if (field === "DAY") return value.slice(0, 10);
  return field === "HOUR" ? value.slice(0, 16).replace("T", " ") : value;
}

function leftOut(row) {
  return [row.unmetered && `${whole(row.unmetered)} calls don't say their tokens`, row.refused && `${whole(row.refused)} say what can't be`].filter(Boolean).join("; ");
}
