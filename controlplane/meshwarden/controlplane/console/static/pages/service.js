// One service: its traffic, what policies say of who calls it, its limits, its objectives and its recent traces.

import { kindOf } from "../parts/kind.js";
import { chart } from "../parts/chart.js";
import { h, put } from "../parts/dom.js";
import { explain, explained } from "../parts/explained.js";
import { all, live } from "../parts/live.js";
import { percent, rate, whole } from "../parts/number.js";
import { badge, empty, problem } from "../parts/problem.js";
import { table } from "../parts/table.js";
import { ago, seconds, span } from "../parts/time.js";
import { Mesh } from "../parts/mesh.js";
import { waterfall } from "../parts/waterfall.js";
import { withQuery } from "../parts/api.js";
import { WORDS, link } from "./picked.js";

const AGAIN_MS = 5000;
const SETTLED_MS = 4000;
const NAME = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/;
const KINDS = ["AccessPolicy", "RoutePolicy", "RatePolicy"];

export const page = { path: "service", menu: "graph", show };

function show({ get, send, watch, go, parameters }) {
  const [tenant, name] = parameters.rest;
  if (![tenant, name].every((part) => NAME.test(part))) {
    return { element: empty("There is no such service", h("a", { href: "#graph" }, "The graph"), ` has them all, and no ${parameters.rest.join("/")}.`) };
  }
  const service = `${tenant}/${name}`;
  const mesh = new Mesh();
  const state = h("span", null);
  const figures = h("dl", { class: "figures" });
  const traffic = chart("Calls a second to it, of the time that this page is open", [["calls", "main"], ["errors", "bad"], ["denied", "denied"]]);
  const callers = callTable("Called by", "source");
  const callees = callTable("Calls", "destination");
  const objectives = h("div", { class: "objectives" });
  const policies = h("div", null, h("p", { class: "quiet" }, "…"));
  const limits = limitTable();
  const traces = tracePanel({ get, service, now: () => Date.parse(mesh.now) || Date.now() });
  const ask = explainForm({ get, send }, service);
  const path = withQuery("/v1/mesh:watch", { service });
  const refused = h("div", { class: "fault", role: "status" });
  const stop = watch(
    path,
    (message) => {
      mesh.take(message);
      draw();
    },
    (told) => put(refused, typeof told !== "string" && [problem(told), [403, 404].includes(told.status) && h("p", { class: "quiet" }, "It is not followed any more.")]),
  );

  function draw() {
    const one = mesh.services.get(service);
    if (!one) {
      // Deleted, maybe while one looks: what was known of it is not so any more.
      put(state, badge("idle", "nothing of it is here"));
      put(figures);
      callers.update([]);
      callees.update([]);
      put(objectives, h("p", { class: "quiet" }, "No SLO says what is expected of it."));
      return;
    }
    const isDown = one.endpoints && !one.healthyEndpoints;
    put(state, badge(isDown ? "bad" : kindOf(one), isDown ? "down" : WORDS[kindOf(one)]));
    const edges = [...mesh.edges.values()];
    put(
      figures,
      figure("Calls", rate(one.callsPerS), "/s"),
      figure("Errors", percent((one.errorsPerS ?? 0) / (one.callsPerS || 1)), `${rate(one.errorsPerS)}/s`),
      figure("Denied", rate(one.deniedPerS), "/s"),
      figure("Limited", rate(one.limitedPerS), "/s"),
      figure("p95", one.p95S ? span(one.p95S) : "–", "slowest caller"),
      figure("Endpoints", one.external ? "external" : `${one.healthyEndpoints ?? 0} of ${one.endpoints ?? 0}`, (one.regions ?? []).join(", ")),
    );
    traffic.add(Date.parse(mesh.now), [one.callsPerS ?? 0, one.errorsPerS ?? 0, one.deniedPerS ?? 0]);
    callers.update(edges.filter((edge) => edge.destination === service));
    callees.update(edges.filter((edge) => edge.source === service));
    ask.suggest(edges.filter((edge) => edge.destination === service).map((edge) => edge.source));
    const own = [...mesh.objectives.values()].filter((objective) => objective.service === service);
    put(objectives, own.length ? own.map(objectivePanel) : h("p", { class: "quiet" }, "No SLO says what is expected of it."));
  }

  async function refresh() {
    await traces.refresh();
    const found = await policiesOf(get, tenant, name);
    const signature = JSON.stringify(found);
    if (policies.dataset.shown !== signature) put(policies, policyList(found));
    policies.dataset.shown = signature;
    const limiting = found.filter((one) => one.kind === "RatePolicy").map((one) => `${tenant}/${one.metadata.name}`);
    limits.update(((await get("/v1/quotas")).quotas ?? []).filter((one) => limiting.includes(one.bucket?.policy) && [undefined, "", service].includes(one.bucket.service)));
  }

  const asked = live(refresh, AGAIN_MS);
  const element = h(
    "div",
    { class: "page" },
    h("div", { class: "bar" }, h("h1", null, h("span", { class: "quiet" }, `${tenant} / `), name), state, h("span", { class: "push" }, h("button", { type: "button", onclick: () => go("graph") }, "Graph"))),
    refused,
    asked.fault,
    figures,
    h("div", { class: "panels" },
      panel("Traffic", traffic.element), panel("Objectives, in the last minute", objectives),
      panel("Called by", callers.element), panel("Calls", callees.element),
      panel("Policies that apply", policies, ask.element), panel("Limits and shares", limits.element)),
    panel("Recent traces", traces.element),
  );
  return {
    element,
    stop() {
      stop();
      asked.stop();
    },
  };
}

function panel(title, ...content) {
  return h("section", { class: "panel", "aria-label": title }, h("h2", null, title), content);
}

function figure(title, value, unit) {
  return h("div", { class: "figure" }, h("dt", null, title), h("dd", null, value, " ", h("small", null, unit)));
}

function callTable(label, end) {
  return table({
    label,
    id: (edge) => edge[end],
    filter: false,
    none: "Nobody, of late.",
    columns: [
      { title: end === "source" ? "Caller" : "Service", value: (edge) => edge[end], show: (edge) => link(edge[end]) },
      { title: "State", value: kindOf, show: (edge) => badge(kindOf(edge), WORDS[kindOf(edge)]) },
      { title: "Calls/s", value: (edge) => edge.callsPerS ?? 0, show: (edge) => rate(edge.callsPerS), align: "right" },
      { title: "Errors", value: (edge) => edge.errorsPerS ?? 0, show: (edge) => percent((edge.errorsPerS ?? 0) / (edge.callsPerS || 1)), align: "right" },
      { title: "p95", value: (edge) => edge.p95S ?? 0, show: (edge) => (edge.p95S ? span(edge.p95S) : "–"), align: "right" },
      { title: "mTLS", value: (edge) => edge.mutualTls, show: (edge) => (edge.mutualTls === "NONE" ? badge("warn", "none") : (edge.mutualTls ?? "").toLowerCase()) },
    ],
  });
}

function objectivePanel(one) {
  const burn = one.burn ?? 0;
  const kind = burn >= 14.4 ? "bad" : burn >= 1 ? "warn" : "good";
  return h(
    "div",
    { class: "objective" },
    h("div", { class: "panel-head" }, h("strong", null, one.slo), badge(kind, burn ? `burns ${rate(burn)}×` : "nothing is spent")),
    h("span", { class: `meter ${kind}`, role: "meter", "aria-valuenow": Math.min(burn, 20), "aria-valuemin": "0", "aria-valuemax": "20", "aria-label": `Burn rate of ${one.slo}` }, h("span", { style: { "--share": `${Math.min(100, burn * 5)}%` } })),
    h("span", { class: "quiet" }, `${one.objective} % good is wanted; ${rate(one.badPerS)} of ${rate(one.callsPerS)} calls a second were bad. At 14.4× somebody is paged.`),
  );
}

/** The policies of the service's tenant that are about it. */
async function policiesOf(get, tenant, name) {
  const pages = await Promise.all(KINDS.map((kind) => all(get, `/v1/resources/${kind}/${tenant}`, { pageSize: 500 }, "resources")));
  return pages.flat().filter(({ spec }) => spec.service === name || (spec.services ?? []).some((one) => [name, `${tenant}/${name}`, "*", `${tenant}/*`, "*/*"].includes(one)));
}

function policyList(found) {
  if (!found.length) return h("p", { class: "quiet" }, "None. Without an AccessPolicy nobody may call it.");
  return h("div", { class: "policies" }, found.map((one) =>
    h("details", null,
      h("summary", null, h("strong", null, one.kind), ` ${one.metadata.tenant}/${one.metadata.name} `, h("span", { class: "quiet" }, `revision ${one.metadata.record?.revision ?? "?"}`)),
      h("pre", { tabindex: "0" }, JSON.stringify(one.spec, null, 2)))));
}

function explainForm(api, service) {
  const known = h("datalist", { id: "callers" });
  const from = h("input", { name: "from", list: "callers", placeholder: "tenant/service", "aria-label": "Caller to explain", required: true, spellcheck: "false" });
  const said = h("div", null);
  const form = h("form", { class: "bar", onsubmit: submit }, h("label", null, "May", from, `call ${service.split("/")[1]}?`), known, h("button", { type: "submit" }, "Explain"));

  async function submit(event) {
    event.preventDefault();
    try {
      put(said, explained(await explain(api, from.value.trim(), service)));
    } catch (error) {
      put(said, problem(error));
    }
  }

  return {
    element: h("div", null, form, said),
    suggest(names) {
      const wanted = names.filter((name) => !name.includes("*"));
      if (wanted.length !== known.children.length) put(known, wanted.map((name) => h("option", { value: name })));
      if (!from.value && wanted.length && !from.matches(":focus")) from.value = wanted[0];
    },
  };
}

function limitTable() {
  const amount = (one, value) => `${rate(value ?? 0)}${one.period || one.unit === "concurrent" ? "" : "/s"}`;
  const column = (title, value) => ({ title, value: (one) => value(one) ?? 0, show: (one) => amount(one, value(one)), align: "right" });
  return table({
    label: "Limits",
    id: (one) => JSON.stringify(one.bucket),
    filter: false,
    none: "Nothing that is limited was called of late.",
    columns: [
      { title: "Tenant", value: (one) => one.bucket.tenant ?? "" },
      { title: "Of", value: (one) => one.bucket.method || one.unit || "requests" },
      column("Limit", (one) => one.limit),
      column("Wanted", (one) => (one.period ? one.period.used : one.unit === "concurrent" ? one.inUse : one.demand)),
      column("Share", (one) => one.share),
      { title: "Why", value: (one) => one.reason ?? "", wide: true },
    ],
  });
}

function tracePanel({ get, service, now }) {
  const open = h("div", { class: "trace" });
  let shown = "";
  const list = table({
    label: "Recent traces",
    id: (trace) => trace.traceId,
    filter: false,
    sort: 0,
    descending: true,
    none: "No trace of it is kept: programs are sampled, and none was of late.",
    columns: [
      { title: "When", value: (trace) => trace.start, show: (trace) => ago(trace.start) },
      { title: "Where it begins", value: (trace) => trace.service },
      { title: "What", value: (trace) => trace.name, wide: true },
      { title: "Took", value: (trace) => seconds(trace.duration), show: (trace) => span(seconds(trace.duration)), align: "right" },
      { title: "Spans", value: (trace) => trace.spans ?? 0, show: (trace) => whole(trace.spans), align: "right" },
      { title: "State", value: (trace) => trace.errors ?? 0, show: (trace) => (trace.errors ? badge("bad", `${trace.errors} failed`) : badge("good", "ok")) },
      { title: "Waterfall", value: (trace) => trace.traceId, show: (trace) => h("button", { type: "button", class: "link", onclick: () => load(trace.traceId) }, trace.traceId.slice(0, 8)) },
    ],
  });

  async function load(id) {
    shown = id;
    try {
      const trace = await get(`/v1/traces/${id}`);
      if (shown === id) put(open, waterfall(trace));
    } catch (error) {
      put(open, problem(error));
    }
  }

  return {
    element: h("div", { class: "traces" }, list.element, open),
    async refresh() {
      try {
        // Of one that is new spans may be on their way.
        const end = new Date(now() - SETTLED_MS).toISOString();
        const found = (await get("/v1/traces", { service, end, pageSize: 6 })).traces ?? [];
        list.update(found);
        const whole = found.find((trace) => !trace.incomplete) ?? found[0];
        if (!shown && whole) load(whole.traceId);
      } catch (error) {
        put(open, problem(error));
      }
    },
  };
}
